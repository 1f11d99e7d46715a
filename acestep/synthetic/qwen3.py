"""Qwen3 bodies with seeded random weights: the renderer's text encoder and the 5 Hz language model are both one."""

from __future__ import annotations

import torch
from transformers import Qwen3Config, Qwen3Model

from acestep.synthetic.weights import materialise
from acestep.weights.empty import empty_qwen3, restore_rotary_frequencies


def build_qwen3(
    config: Qwen3Config, *, seed: int, device: torch.device, dtype: torch.dtype, storage: torch.device | None = None
) -> Qwen3Model:
    """Build the model without a head.

    Args:
        config: its architecture.
        seed: of its weights.
        device: where they are drawn.
        dtype: of the weights; the rotary frequencies stay in float32, as in a loaded model.
        storage: where they are kept; ``device`` when not given.
    """
    model = empty_qwen3(config)
    materialise(model, seed=seed, device=device, dtype=dtype, storage=storage)
    restore_rotary_frequencies(model, storage or device)
    return model
