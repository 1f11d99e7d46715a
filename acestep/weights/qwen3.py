"""Qwen3 models from disk: the text encoder of the renderer, and the 5 Hz language model."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3Model

from acestep.errors import CheckpointInvalid
from acestep.planner.budget import CONTEXT_LIMIT, LanguageModel
from acestep.weights.layout import CONFIG, read_json
from acestep.weights.meta_modules import assign, empty_qwen3, restore_rotary_frequencies
from acestep.weights.plausible import read_configuration
from acestep.weights.tensor_files import TensorFiles
from acestep.weights.text_tokenizer import load_vocabulary

_BODY_PREFIX = "model."
"""Prefix of the tensor names of a body that was saved together with a head."""
_TIED_HEAD = "lm_head.weight"


def load_qwen3(folder: Path, *, device: torch.device, dtype: torch.dtype) -> Qwen3Model:
    """Load the model without a head.

    Args:
        folder: ``config.json`` and ``model.safetensors``, or shards; tensors with or without the prefix ``model.``.
        device: of the weights.
        dtype: number type of the weights; the rotary frequencies stay in float32.

    Raises:
        CheckpointInvalid: a file is corrupt, or does not fit the configuration.
    """
    try:
        # "sdpa" runs everywhere; the implementation that the file names may not be installed.
        config = Qwen3Config.from_dict(read_configuration(folder / CONFIG), attn_implementation="sdpa")
        model = empty_qwen3(config)
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError, RuntimeError) as error:
        raise CheckpointInvalid(f"{folder / CONFIG} does not describe a Qwen3 model: {error!r}") from error
    files = TensorFiles.open(folder, "model")
    prefix = _BODY_PREFIX if any(name.startswith(_BODY_PREFIX) for name in files.tensors) else ""
    assign(
        {"body": model},
        files,
        lambda _, name: prefix + name,
        device=device,
        dtype=dtype,
        # A copy of the embedding, where the two are tied.
        ignored=(_TIED_HEAD,) if config.tie_word_embeddings else (),
    )
    restore_rotary_frequencies(model, device)
    return model


def load_language_model_folder(folder: Path, *, device: torch.device, dtype: torch.dtype) -> LanguageModel:
    """Load a language model of any size.

    Args:
        folder: as published: configuration, weights and ``tokenizer.json``.
        device: of the weights.
        dtype: number type of the weights.

    Raises:
        CheckpointInvalid: a file is corrupt, or does not fit the others.
    """
    if read_json(folder / CONFIG).get("tie_word_embeddings") is False:
        raise CheckpointInvalid(f"{folder / CONFIG}: a head that is not tied to the embedding is not supported")
    body = load_qwen3(folder, device=device, dtype=dtype)
    return LanguageModel(
        name=folder.absolute().name,
        weights="checkpoint",
        body=body,
        head=body.embed_tokens.weight,
        vocabulary=load_vocabulary(folder, rows=body.config.vocab_size),
        device=device,
        dtype=dtype,
        context_limit=min(CONTEXT_LIMIT, body.config.max_position_embeddings),
    )
