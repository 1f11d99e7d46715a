"""The 5 Hz language model from disk."""

from __future__ import annotations

from pathlib import Path

import torch

from acestep.errors import CheckpointInvalid
from acestep.planner.models import CONTEXT_LIMIT, LanguageModel
from acestep.weights.layout import CONFIG, read_json
from acestep.weights.qwen3 import load_qwen3
from acestep.weights.text_tokenizer import load_vocabulary


def load_language_model_folder(folder: Path, *, device: torch.device, dtype: torch.dtype) -> LanguageModel:
    """Load a language model of any size.

    Args:
        folder: as published: configuration, weights and ``tokenizer.json``.
        device: where the weights shall live.
        dtype: number type that they shall have.

    Raises:
        CheckpointInvalid: a file is corrupt, or does not fit the others.
    """
    if read_json(folder / CONFIG).get("tie_word_embeddings") is False:
        raise CheckpointInvalid(f"{folder / CONFIG}: a head that is not tied to the embedding cannot be used here")
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
