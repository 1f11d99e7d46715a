"""Drawing tokens on CUDA in four fused kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Final

import torch

from acestep.planner.sampling import INCREMENT, MASS_UNIT, MULTIPLIERS, sample
from acestep.types import SamplingSettings

_BLOCK: Final = 1_024
"""Logits of one program."""


def can_sample(device: torch.device) -> bool:
    """Whether the kernels can run on a device."""
    return device.type == "cuda" and find_spec("triton") is not None


def drawing(device: torch.device) -> Callable[[torch.Tensor, SamplingSettings, torch.Tensor], torch.Tensor]:
    """How a token per row of logits is drawn on a device."""
    return fused_sample if can_sample(device) else sample


def fused_sample(logits: torch.Tensor, settings: SamplingSettings, keys: torch.Tensor) -> torch.Tensor:
    """``acestep.planner.sampling.sample``; greedy decoding, top-k and the whole distribution go there.

    The tokens are the same, except where two candidates of the race are within a rounding error of each other.

    Args:
        logits: float32, shape ``[rows, tokens]``.
        settings: temperature, ``top_k`` and ``top_p``.
        keys: of the noise, one per row, shape ``[rows]``, on the logits' device.

    Returns:
        Index of the drawn token, int64, shape ``[rows]``.
    """
    rows, count = logits.shape
    if settings.temperature == 0 or 0 < settings.top_k < count or not 0 < settings.top_p < 1:
        return sample(logits, settings, keys)
    from acestep.planner.backends import sampling_kernels

    kernels: Any = sampling_kernels
    logits = logits.contiguous()
    blocks = -(-count // _BLOCK)
    cells = 2 * (kernels.BINS + 2)
    maxima, sums, scores = (logits.new_empty(rows, blocks) for _ in range(3))
    histograms = keys.new_empty(rows, cells)
    indices = keys.new_empty(rows, blocks, dtype=torch.int32)
    arrivals = keys.new_zeros(rows, dtype=torch.int32)
    drawn = keys.new_empty(rows)
    sizes = {"BLOCK": _BLOCK, "BLOCKS": blocks, "BLOCKS_BLOCK": 1 << (blocks - 1).bit_length()}
    # Of all tokens, those beyond this drop have less than 1 - top_p together.
    log_limit, limit = math.log(count / (1 - settings.top_p)), int(settings.top_p * MASS_UNIT)
    measured = (logits, maxima, sums, histograms)
    grid = (rows, blocks)
    cleared = 1 << (-(-cells // blocks) - 1).bit_length()
    kernels.measure[grid](*measured, count, BLOCK=_BLOCK, CLEARED=cleared)
    for refines in (False, True):
        kernels.count_masses[grid](*measured, count, log_limit, limit, REFINES=refines, **sizes)
    kernels.draw[grid](
        *measured,
        keys,
        scores,
        indices,
        arrivals,
        drawn,
        count,
        log_limit,
        limit,
        float(settings.temperature),
        INCREMENT=INCREMENT,
        FIRST=MULTIPLIERS[0],
        SECOND=MULTIPLIERS[1],
        **sizes,
    )
    return drawn
