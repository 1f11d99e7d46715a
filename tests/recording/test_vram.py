"""VRAM readings of stages, from the allocator's counters on the host; a double of the allocator stands in for a GPU."""

from __future__ import annotations

import pytest
import torch

from acestep_otel.recording.clock import HostClock, host_mark
from acestep_otel.recording.trace_tree import RequestRecording, Stage
from acestep_otel.recording.vram import VramPeak, VramReading, VramTracker
from acestep_otel.settings import Detail
from tests.allocator import Allocator

CUDA = torch.device("cuda", 0)


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> Allocator:
    found = Allocator(monkeypatch)

    def synchronised(*_arguments: object) -> None:
        raise AssertionError("a reading waited for the device")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronised)
    return found


def recording(device: torch.device, detail: Detail = Detail.STEP) -> RequestRecording:
    root = Stage("generate_music", host_mark(), device_clock=False)
    return RequestRecording(root, clock=HostClock(), device=device, detail=detail, vram=VramTracker())


def test_every_end_reads_what_is_in_use_and_a_stage_its_peak(allocator: Allocator) -> None:
    request = recording(CUDA, Detail.TOKEN)
    allocator.use(900)
    allocator.use(100)
    stage = request.begin("acestep.dit", detail=Detail.STAGE, device_clock=False, tracks_memory=True)
    step = request.begin("acestep.dit.step", detail=Detail.STEP, device_clock=False, tracks_memory=False)
    allocator.use(700)
    allocator.use(300)
    request.end(step)
    allocator.use(200)
    request.end(stage)
    request.end(request.root)
    assert step.vram == VramReading(300, 900, VramPeak(700, 900, shared=False))
    assert step.peak is None
    assert stage.vram == VramReading(200, 900, VramPeak(700, 900, shared=False))
    assert stage.peak == VramPeak(700, 900, shared=False)
    assert request.root.vram is not None
    assert request.root.vram.allocated == 200
    assert (allocator.reads, allocator.resets) == (3, 1)


def test_below_detail_token_steps_cost_no_reading(allocator: Allocator) -> None:
    request = recording(CUDA)
    stage = request.begin("acestep.dit", detail=Detail.STAGE, device_clock=False, tracks_memory=False)
    step = request.begin("acestep.dit.step", detail=Detail.STEP, device_clock=False, tracks_memory=False)
    request.end(step)
    assert (step.vram, allocator.reads) == (None, 0)
    request.end(stage)
    assert (stage.vram is not None, allocator.reads) == (True, 1)


def test_one_reading_has_all_counts_of_the_allocator(allocator: Allocator) -> None:
    allocator.retries, allocator.out_of_memory, allocator.driver_allocations = 2, 1, 40
    found = VramTracker().read(CUDA)
    assert found is not None
    assert (found.retries, found.out_of_memory, found.driver_allocations) == (2, 1, 40)
    assert allocator.reads == 1


def test_off_cuda_nothing_is_read(allocator: Allocator) -> None:
    request = recording(torch.device("cpu"))
    stage = request.begin("acestep.dit", detail=Detail.STAGE, device_clock=False, tracks_memory=True)
    request.end(stage)
    assert (stage.vram, stage.peak) == (None, None)
    assert (allocator.reads, allocator.resets) == (0, 0)


def test_a_peak_of_two_requests_says_so(allocator: Allocator) -> None:
    tracker = VramTracker()
    with tracker.request(CUDA), tracker.request(CUDA):
        tracker.begin(CUDA)
        reading = tracker.read(CUDA)
    assert reading is not None
    assert reading.peak.shared
    # Another request may be recording a peak.
    assert allocator.resets == 0
