"""Qwen3 bodies from disk: the renderer's text encoder and the 5 Hz language model are both one."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3Model

from acestep.errors import CheckpointInvalid
from acestep.weights.assignment import assign
from acestep.weights.empty import empty_qwen3, restore_rotary_frequencies
from acestep.weights.layout import CONFIG, read_json
from acestep.weights.tensor_files import TensorFiles

_BODY_PREFIX = "model."
"""What the names of a body begin with when it was saved together with a head."""
_TIED_HEAD = "lm_head.weight"


def load_qwen3(folder: Path, *, device: torch.device, dtype: torch.dtype) -> Qwen3Model:
    """Load the model without a head.

    Args:
        folder: ``config.json`` and ``model.safetensors``, or shards; tensors with or without the prefix ``model.``.
        device: where the weights shall live.
        dtype: number type that they shall have; the rotary frequencies stay in float32.

    Raises:
        CheckpointInvalid: a file is corrupt, or does not fit the configuration.
    """
    try:
        # "sdpa" runs everywhere; what the file asks for may not be installed here.
        config = Qwen3Config.from_dict(read_json(folder / CONFIG), attn_implementation="sdpa")
        model = empty_qwen3(config)
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError, RuntimeError) as error:
        raise CheckpointInvalid(f"{folder / CONFIG} describes no Qwen3 model: {error!r}") from error
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
