"""VRAM readings of stages, from the allocator's counters on the host; a double of the allocator stands in for a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from acestep_otel.recording.clock import HostClock
from acestep_otel.recording.stages import RequestRecording
from acestep_otel.recording.vram import VramPeak, VramReading, VramTracker
from acestep_otel.settings import Detail

CUDA = torch.device("cuda", 0)


class Allocator:
    """The counters that PyTorch keeps, and how often they were read and reset."""

    def __init__(self) -> None:
        self.allocated = self.allocated_peak = 0
        self.reserved = 0
        self.reads = self.resets = 0

    def use(self, allocated: int) -> None:
        self.allocated = allocated
        self.allocated_peak = max(self.allocated_peak, allocated)
        self.reserved = max(self.reserved, allocated)

    def counters(self, _device: torch.device) -> dict[str, Any]:
        self.reads += 1
        return {
            "allocated_bytes": {"all": {"current": self.allocated, "peak": self.allocated_peak}},
            "reserved_bytes": {"all": {"current": self.reserved, "peak": self.reserved}},
        }

    def reset(self, _device: torch.device) -> None:
        self.resets += 1
        self.allocated_peak = self.allocated


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> Allocator:
    found = Allocator()
    monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", found.counters)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", found.reset)

    def synchronised(*_arguments: object) -> None:
        raise AssertionError("a reading waited for the device")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronised)
    return found


def recording(device: torch.device) -> RequestRecording:
    return RequestRecording("generate_music", clock=HostClock(), device=device, detail=Detail.STEP, vram=VramTracker())


def test_every_end_reads_what_is_in_use_and_a_stage_its_peak(allocator: Allocator) -> None:
    request = recording(CUDA)
    allocator.use(900)
    allocator.use(100)
    stage = request.begin("acestep.dit", device_clock=False, tracks_memory=True)
    step = request.begin("acestep.dit.step", device_clock=False, tracks_memory=False)
    allocator.use(700)
    allocator.use(300)
    request.end(step)
    allocator.use(200)
    request.end(stage, tracks_memory=True)
    request.end(request.root)
    assert step.vram == VramReading(300, 900, VramPeak(700, 900, shared=False))
    assert step.peak is None
    assert stage.vram == VramReading(200, 900, VramPeak(700, 900, shared=False))
    assert stage.peak == VramPeak(700, 900, shared=False)
    assert request.root.vram is not None
    assert request.root.vram.allocated == 200
    assert (allocator.reads, allocator.resets) == (3, 1)


def test_off_cuda_nothing_is_read(allocator: Allocator) -> None:
    request = recording(torch.device("cpu"))
    stage = request.begin("acestep.dit", device_clock=False, tracks_memory=True)
    request.end(stage, tracks_memory=True)
    assert (stage.vram, stage.peak) == (None, None)
    assert (allocator.reads, allocator.resets) == (0, 0)


def test_a_peak_of_two_requests_says_so(allocator: Allocator) -> None:
    tracker = VramTracker()
    with tracker.request(CUDA), tracker.request(CUDA):
        tracker.begin(CUDA)
        reading = tracker.read(CUDA)
    assert reading is not None
    assert reading.peak.shared
    # Somebody else's peak may be under way.
    assert allocator.resets == 0
