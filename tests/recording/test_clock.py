"""Clocks: marks cost nothing, resolve later, and end in wall time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from acestep_otel.recording.clock import Clocks, CudaEventClock, EventPool, HostClock, Mark, host_mark


class FakeEvents:
    """Stands in for a CUDA device, which this test machine lacks: a stream whose time is set by the test.

    Each event takes the device's time (milliseconds) when recorded; ``pending`` events have not been reached yet.
    """

    def __init__(self, *, anchor_completes: bool = True) -> None:
        self.now_ms = 0.0
        self.idle_stream = "idle"
        self.returned: list[object] = []
        self.anchor_completes = anchor_completes
        self.asked = False

    @contextmanager
    def asking(self) -> Iterator[None]:
        self.asked = True
        yield
        self.asked = False

    def current_stream(self) -> str:
        return "work"

    def take(self) -> "FakeEvent":
        return FakeEvent(self)

    def give_back(self, event: object) -> None:
        self.returned.append(event)


class FakeEvent:
    def __init__(self, device: FakeEvents) -> None:
        self.device = device
        self.time_ms = 0.0
        self.stream = ""

    def record(self, stream: str) -> None:
        self.time_ms, self.stream = self.device.now_ms, stream

    def query(self) -> bool:
        assert self.device.asked
        return self.stream == "work" or self.device.anchor_completes

    def elapsed_time(self, other: "FakeEvent") -> float:
        assert self.device.asked
        return other.time_ms - self.time_ms


def test_host_marks_resolve_to_the_wall_clock_in_integer_nanoseconds():
    clock = HostClock()
    before = time.time_ns()
    mark = clock.mark()
    after = time.time_ns()
    (resolved,) = clock.resolve([mark])
    assert isinstance(resolved, int)
    assert before - 1_000_000 <= resolved <= after + 1_000_000


def test_host_marks_keep_their_distance():
    times = HostClock().resolve([Mark(5_000), Mark(17_000)])
    assert times[1] - times[0] == 12_000


def test_event_marks_resolve_to_stream_time_before_one_anchor():
    device = FakeEvents()
    clock = CudaEventClock(device, HostClock())
    marks = []
    for device.now_ms in (10.0, 12.5, 40.0):
        marks.append(clock.mark())
    device.now_ms = 100.0
    before = time.time_ns()
    first, second, third = clock.resolve(marks)
    assert (second - first, third - second) == (2_500_000, 27_500_000)
    assert 0 <= (first + 90_000_000) - before < 50_000_000


def test_resolved_events_go_back_to_the_pool_once():
    device = FakeEvents()
    clock = CudaEventClock(device, HostClock())
    marks = [clock.mark() for _ in range(3)]
    clock.resolve(marks)
    assert [event for event in device.returned if event.stream == "work"] == [mark.event for mark in marks]
    anchors = [event for event in device.returned if event.stream == "idle"]
    assert anchors
    assert len(set(map(id, anchors))) == len(anchors)


def test_marks_of_the_host_alone_keep_host_time_on_the_event_clock():
    clock = CudaEventClock(FakeEvents(), HostClock())
    mark = host_mark()
    assert abs(clock.resolve([mark])[0] - time.time_ns()) < 50_000_000


def test_an_anchor_that_another_thread_delayed_is_taken_again():
    class Delayed(FakeEvents):
        def take(self) -> FakeEvent:
            self.now_ms = time.perf_counter() * 1e3
            return FakeEvent(self)

    class Event(FakeEvent):
        def query(self) -> bool:
            time.sleep(0.1)
            return True

    device = Delayed()
    clock = CudaEventClock(device, HostClock())
    mark, expected = clock.mark(), time.time_ns()
    delayed = [Event(device)]
    take, device.take = device.take, lambda: delayed.pop() if delayed else take()
    (resolved,) = clock.resolve([mark])
    assert abs(resolved - expected) < 50_000_000


def test_an_anchor_that_does_not_complete_falls_back_to_host_time():
    device = FakeEvents(anchor_completes=False)
    clock = CudaEventClock(device, HostClock())
    marks = [Mark(1_000, device.take()), Mark(4_000, device.take())]
    first, second = clock.resolve(marks)
    assert second - first == 3_000
    assert [mark.event for mark in marks] == [None, None]


@pytest.mark.parametrize("device", ["cpu", "mps", "meta"])
def test_only_cuda_has_a_device_clock(device):
    host = HostClock()
    assert Clocks().for_device(torch.device(device), host) is host


def test_a_device_without_a_number_is_the_one_that_is_current(monkeypatch):
    streams = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "Stream", streams.append)
    clocks = Clocks()
    for device in ("cuda", "cuda:1", "cuda:0"):
        clocks.for_device(torch.device(device), HostClock())
    assert streams == [1, 0]


def test_a_mark_is_recorded_on_the_stream_that_its_thread_works_on(monkeypatch):
    current, made = [7], []
    monkeypatch.setattr(torch.cuda, "Stream", lambda _index: "idle")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _index: made.append(current[0]) or f"stream {current[0]}")
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda _index: current[0], raising=False)
    pool = EventPool(0)
    seen = []
    for current[0] in (7, 7, 9, 7):
        seen.append(pool.current_stream())
    assert seen == ["stream 7", "stream 7", "stream 9", "stream 7"]
    # Each was made once: that is what takes the time.
    assert made == [7, 9]


def test_without_the_look_at_a_handle_a_mark_finds_its_stream_all_the_same(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Stream", lambda _index: "idle")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _index: SimpleNamespace(cuda_stream=7))
    monkeypatch.delattr(torch._C, "_cuda_getCurrentRawStream", raising=False)
    assert EventPool(0).current_stream().cuda_stream == 7


def test_requests_that_interleave_on_one_stream_keep_their_own_times():
    device = FakeEvents()
    clocks = [CudaEventClock(device, HostClock()), CudaEventClock(device, HostClock())]
    marks: list[list[Mark]] = [[], []]
    for device.now_ms, request in ((0.0, 0), (1.0, 1), (4.0, 0), (9.0, 1)):
        marks[request].append(clocks[request].mark())
    device.now_ms = 20.0
    durations = [end - start for start, end in (clock.resolve(own) for clock, own in zip(clocks, marks, strict=True))]
    assert durations == [4_000_000, 8_000_000]
    assert len({id(event) for event in device.returned}) == len(device.returned)
    assert len([event for event in device.returned if event.stream == "work"]) == 4


def test_a_mark_is_reached_when_its_event_is():
    device = FakeEvents(anchor_completes=False)
    clock = CudaEventClock(device, HostClock())
    pending = Mark(0, device.take())
    assert [clock.reached(mark) for mark in (host_mark(), clock.mark(), pending)] == [True, True, False]
