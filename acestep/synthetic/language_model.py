"""5 Hz language models with seeded random weights: one of a few megabytes, and every released size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from transformers import Qwen3Config

from acestep.planner.budget import CONTEXT_LIMIT, LanguageModel
from acestep.planner.vocabulary import QWEN3_LAYOUT, TokenLayout, Vocabulary
from acestep.synthetic.random_weights import build_qwen3
from acestep.synthetic.tokenizer import build_tokenizer

TINY_LAYOUT: Final = TokenLayout(
    pad=1531,
    turn_start=1532,
    eos=1533,
    think_open=1534,
    think_close=1535,
    text_size=1536,
    code_base=1536,
    vocabulary_size=65_544,
)
"""All audio codes and a few invalid code rows after them, over a small text vocabulary."""
_MODEL_POSITIONS: Final = 40_960


@dataclass(frozen=True, slots=True)
class LanguageModelConfig:
    """Architecture of a Qwen3 model.

    Attributes:
        hidden_size: width.
        layers: decoder layers.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: width of a head.
        feed_forward_size: width inside the feed-forward layers.
        layout: tokens.
    """

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward_size: int
    layout: TokenLayout


LANGUAGE_MODEL_CONFIGS: Final[dict[str, LanguageModelConfig]] = {
    "acestep-5Hz-lm-tiny": LanguageModelConfig(16, 2, 2, 1, 32, 32, TINY_LAYOUT),
    "acestep-5Hz-lm-0.6B": LanguageModelConfig(1024, 28, 16, 8, 128, 3072, QWEN3_LAYOUT),
    "acestep-5Hz-lm-1.7B": LanguageModelConfig(2048, 28, 16, 8, 128, 6144, QWEN3_LAYOUT),
    "acestep-5Hz-lm-4B": LanguageModelConfig(2560, 36, 32, 8, 128, 9728, QWEN3_LAYOUT),
}
"""Architectures by name: the embedded ``tiny`` and those of the released models."""


def build_language_model(
    name: str, *, device: torch.device, dtype: torch.dtype, seed: int = 0, storage: torch.device | None = None
) -> LanguageModel:
    """Build a language model with random weights.

    Args:
        name: a key of ``LANGUAGE_MODEL_CONFIGS``.
        device: where the model runs, and where the weights are drawn.
        dtype: of the weights.
        seed: the model's seed; equal seeds give equal weights on the CPU.
        storage: where the weights are kept; ``device`` when not given.

    Raises:
        KeyError: the name is not in the table.
    """
    config = LANGUAGE_MODEL_CONFIGS[name]
    body = build_qwen3(qwen3_config(config), seed=seed, device=device, dtype=dtype, storage=storage)
    return LanguageModel(
        name=name,
        weights="synthetic",
        body=body,
        head=body.embed_tokens.weight,
        vocabulary=Vocabulary(build_tokenizer(config.layout), config.layout),
        device=device,
        dtype=dtype,
        context_limit=CONTEXT_LIMIT,
    )


def qwen3_config(config: LanguageModelConfig) -> Qwen3Config:
    """The same architecture in transformers' terms."""
    return Qwen3Config(
        vocab_size=config.layout.vocabulary_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.feed_forward_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=_MODEL_POSITIONS,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
