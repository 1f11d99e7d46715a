"""Memory of a trial: allocator counters and driver values by stage, on a simulated device."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from acestep_otel import semconv
from acestep_otel.profiler.report.spans import FinishedSpan
from acestep_otel.profiler.tier_test.memory import REFERENCE_CONTEXT, Interval, MemoryWatch, memory_use
from acestep_otel.profiler.tier_test.trials import StageMemory
from tests.profiler.report.recorded import span

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device whose allocator reserves 60 bytes, 50 of them in tensors; maxima since the last stage: 70 and 55."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 60)
    counters = {"allocated_bytes.all.peak": 55, "reserved_bytes.all.peak": 70}
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: counters)


def stages(*peaks: tuple[str, int, int]) -> list[FinishedSpan]:
    return [
        span(name, 0, 1, attributes={semconv.VRAM_PEAK_ALLOCATED: low, semconv.VRAM_PEAK_RESERVED: high})
        for name, low, high in peaks
    ]


INTERVALS = [Interval("condition", 0, 10), Interval("dit", 20, 30), Interval("offload.move", 31, 32)]


class Watch(MemoryWatch):
    """Saw these levels."""

    def __init__(self) -> None:
        super().__init__(None)

    def peak(self, start_ns: int, end_ns: int) -> int | None:
        return {0: 95, 20: 130}.get(start_ns)


def test_stages_and_the_whole_trial() -> None:
    view = SimpleNamespace(source="nvml_process", used=lambda: 100)
    spans = stages((semconv.CONDITION, 40, 45), (semconv.DIT, 80, 90))
    found = memory_use(CUDA, view, Watch(), spans, INTERVALS)  # type: ignore[arg-type]
    assert found is not None
    assert found.stages == (
        StageMemory("condition", 40, 45, 95),
        StageMemory("dit", 80, 90, 130),
        StageMemory("offload.move", None, None, None),
    )
    # The driver reports 100 while the allocator reserves 60.
    assert (found.source, found.context) == ("nvml_process", 40)
    assert (found.allocated, found.reserved, found.driver) == (80, 90, 130)
    assert (found.computed_peak, found.peak) == (130, 130)


def test_what_came_after_the_last_stage_counts() -> None:
    view = SimpleNamespace(source="nvml_device", used=lambda: 100)
    found = memory_use(CUDA, view, Watch(), stages((semconv.DIT, 10, 20)), INTERVALS[1:2])  # type: ignore[arg-type]
    assert found is not None
    assert (found.allocated, found.reserved) == (55, 70)


def test_a_trial_that_failed_before_any_stage_has_the_counters_alone() -> None:
    view = SimpleNamespace(source="nvml_process", used=lambda: 100)
    found = memory_use(CUDA, view, MemoryWatch(None), [], [])  # type: ignore[arg-type]
    assert found is not None
    assert (found.allocated, found.reserved, found.driver, found.stages) == (55, 70, 100, ())


def test_without_the_driver_a_common_context_is_assumed() -> None:
    found = memory_use(CUDA, None, MemoryWatch(None), stages((semconv.DIT, 80, 90)), INTERVALS[1:2])
    assert found is not None
    assert (found.source, found.driver) == ("reserved_and_reference_context", None)
    assert found.peak == 90 + REFERENCE_CONTEXT


def test_off_cuda_there_is_nothing_to_take() -> None:
    assert memory_use(torch.device("cpu"), None, MemoryWatch(None), [], []) is None
