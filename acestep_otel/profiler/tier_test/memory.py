"""What one trial took of the device's memory: the allocator's counters, and the driver's view of the same stages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import torch

from acestep_otel import semconv
from acestep_otel.profiler.report.spans import FinishedSpan
from acestep_otel.profiler.tier_test.driver_memory import DriverView, MemoryWatch
from acestep_otel.profiler.tier_test.journal import Interval
from acestep_otel.profiler.tier_test.trials import MemoryUse, StageMemory

REFERENCE_CONTEXT: Final = 512 * 2**20
"""Bytes beside the allocator's that are assumed where the driver cannot be asked."""


def memory_use(
    device: torch.device,
    view: DriverView | None,
    watch: MemoryWatch,
    spans: Sequence[FinishedSpan],
    intervals: Sequence[Interval],
) -> MemoryUse | None:
    """Put together what is known of a trial that is over; ``None`` off CUDA.

    Args:
        device: that it ran on.
        view: the driver's view, or ``None``.
        watch: has looked at it all the time.
        spans: those of the trial, with the allocator's peaks.
        intervals: its stages by the host's clock.
    """
    if device.type != "cuda":
        return None
    # What is reserved and what the driver sees belong together only while nothing is being allocated.
    torch.cuda.synchronize(device)
    held = None if view is None else view.used()
    context = REFERENCE_CONTEXT if held is None else max(0, held - torch.cuda.memory_reserved(device))
    # The counters were last reset when the last stage began; what came after it counts as well.
    counters = torch.cuda.memory_stats(device)
    stages = tuple(_stages(spans, intervals, watch))
    allocated = [counters["allocated_bytes.all.peak"], *(stage.allocated for stage in stages)]
    reserved = [counters["reserved_bytes.all.peak"], *(stage.reserved for stage in stages)]
    return MemoryUse(
        source="reserved_and_reference_context" if view is None else view.source,
        context=context,
        allocated=_highest(allocated) or 0,
        reserved=_highest(reserved) or 0,
        driver=_highest([held, *(stage.driver for stage in stages)]),
        stages=stages,
    )


def _stages(spans: Sequence[FinishedSpan], intervals: Sequence[Interval], watch: MemoryWatch) -> Iterator[StageMemory]:
    """Every kind of stage once, in the order that they first ended."""
    for stage in dict.fromkeys(interval.stage for interval in intervals):
        peaks = [span.attributes for span in spans if semconv.stage_of(span.name) == stage]
        looks = [watch.peak(found.start_ns, found.end_ns) for found in intervals if found.stage == stage]
        yield StageMemory(
            stage,
            allocated=_highest(found.get(semconv.VRAM_PEAK_ALLOCATED) for found in peaks),
            reserved=_highest(found.get(semconv.VRAM_PEAK_RESERVED) for found in peaks),
            driver=_highest(looks),
        )


def _highest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)
