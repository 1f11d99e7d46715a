"""Timing of forward passes on any device, for calibration."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Final

import torch

_REPETITIONS: Final = 7
_WARM_UPS: Final = 2


def share_saved(device: torch.device, smaller: Callable[[], object], larger: Callable[[], object]) -> float:
    """Share of the larger work that the smaller one does without.

    Args:
        device: that both run on.
        smaller: one unit of work.
        larger: the same with something added.

    Returns:
        ``1 - time(smaller) / time(larger)`` from the medians of alternating runs, kept within 0 ... 1.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    for repetition in range(_WARM_UPS + _REPETITIONS):
        for work, results in zip((smaller, larger), seconds, strict=True):
            duration = _seconds(device, work)
            if repetition >= _WARM_UPS:
                results.append(duration)
    return min(max(1 - median(seconds[0]) / median(seconds[1]), 0.0), 1.0)


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    if device.type == "cuda":
        start, end = (torch.Event(device, enable_timing=True) for _ in range(2))
        with torch.cuda.device(device):
            start.record()
            work()
            end.record()
            end.synchronize()
        return float(start.elapsed_time(end)) / 1e3
    begin = time.perf_counter()
    work()
    if device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - begin
