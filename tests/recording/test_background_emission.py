"""Telemetry is created in the background, which also waits for a device that is still busy."""

import os
import threading
import time
import weakref
from functools import partial

import pytest
import torch
from opentelemetry.metrics import NoOpMeter
from opentelemetry.sdk.trace import SpanProcessor

from acestep_otel import semconv
from acestep_otel.recording import background_emission as deferral_module
from acestep_otel.recording.background_emission import Deferral
from acestep_otel.recording.call import Call, RequestDefinition, RequestStart, StageDefinition
from acestep_otel.recording.clock import HostClock
from acestep_otel.recording.request_tracer import RequestTracer
from acestep_otel.settings import Settings
from tests.tracing import Traced, tree

CPU = torch.device("cpu")


class SlowDevice(HostClock):
    """A device whose work takes a tenth of a second longer than the host's, and is done when the test says so."""

    def __init__(self):
        super().__init__()
        self.done = threading.Event()

    def reached(self, mark):
        return self.done.is_set()

    def resolve(self, marks):
        return [time + 100_000_000 * (index > 1) for index, time in enumerate(super().resolve(marks))]


@pytest.fixture
def device():
    return SlowDevice()


@pytest.fixture
def layer(device):
    traced = Traced()
    layer = RequestTracer(traced.tracer_provider.get_tracer("test"), NoOpMeter("test"), Settings(), "run")
    layer._clocks.for_device = lambda *_: device
    layer.traced = traced
    return layer


def run(layer, work=lambda: "audio"):
    def song():
        return layer.stage(StageDefinition(semconv.VAE_DECODE), Call(work, None, (), {}))

    start = RequestStart(CPU, {semconv.REQUEST_MODEL: "model"}, ())
    definition = RequestDefinition(semconv.GENERATE_MUSIC, lambda _call, _capture_content: start)
    return layer.request(definition, Call(song, None, (), {}))


def test_the_request_returns_before_the_device_and_its_spans_come_later(layer, device):
    assert run(layer) == "audio"
    assert layer.traced.spans == []
    device.done.set()
    layer.finish(timeout=5)
    assert tree(layer.traced.spans) == [("generate_music", ["acestep.vae.decode"])]


def test_the_root_lasts_until_the_device_was_done(layer, device):
    run(layer)
    device.done.set()
    layer.finish(timeout=5)
    root, decode = layer.traced.spans
    assert root.end_time == decode.end_time
    assert root.end_time - root.start_time >= 100_000_000


def test_a_request_that_is_still_running_is_ended_and_marked_once(layer, device):
    device.done.set()
    at_work, go_on = threading.Event(), threading.Event()
    thread = threading.Thread(target=run, args=(layer, lambda: (at_work.set(), go_on.wait(10))))
    thread.start()
    assert at_work.wait(10)
    layer.finish(timeout=1)
    go_on.set()
    thread.join()
    assert tree(layer.traced.spans) == [("generate_music", ["acestep.vae.decode"])]
    assert layer.traced.named("generate_music")[0].attributes[semconv.TRUNCATED] is True


def test_actions_run_in_order_and_one_that_fails_stops_none():
    deferral, done = Deferral(), []
    deferral.add(lambda: True, lambda: 1 / 0)
    for number in range(3):
        deferral.add(lambda: True, lambda number=number: done.append(number))
    deferral.drain(5)
    assert done == [0, 1, 2]


def test_draining_waits_for_what_is_at_work():
    deferral, done = Deferral(), []
    at_work = threading.Event()

    def slow():
        at_work.set()
        time.sleep(0.05)
        done.append("slow")

    deferral.add(lambda: True, slow)
    assert at_work.wait(10)
    deferral.drain(5)
    assert done == ["slow"]


def test_draining_gives_up_when_its_time_is_over():
    deferral, ready, done = Deferral(), threading.Event(), []
    deferral.add(ready.is_set, lambda: done.append(1))
    assert (deferral.drain(0.01), done) == (1, [])
    ready.set()
    assert (deferral.drain(5), done) == (0, [1])


def test_what_a_flush_cannot_wait_for_is_said_in_one_line(layer, device, caplog):
    run(layer)
    layer.flush(0.01)
    assert caplog.messages == ["not traced within 0.01 s, so that spans may be missing: 1 of the last requests"]
    device.done.set()
    layer.flush(5)
    assert len(caplog.messages) == 1


def test_a_fork_waits_for_telemetry_that_is_being_made_so_that_no_lock_is_inherited(layer, device):
    device.done.set()
    slow = SlowExport()
    layer.traced.tracer_provider.add_span_processor(slow)
    run(layer)
    assert slow.begun.wait(10)
    if child := os.fork():
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        layer.flush(5)
        assert slow.ended == 2
    else:
        os._exit(0 if slow.lock.acquire(timeout=0) else 1)


def test_a_fork_does_not_wait_for_ever(layer, device, monkeypatch):
    monkeypatch.setattr(deferral_module, "_FORK_SECONDS", 0.01)
    device.done.set()
    slow = SlowExport(until=(over := threading.Event()))
    layer.traced.tracer_provider.add_span_processor(slow)
    run(layer)
    assert slow.begun.wait(10)
    if child := os.fork():
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        over.set()
        layer.flush(5)
        assert slow.ended == 2
    else:
        # Its own telemetry is on a thread of its own, whatever became of the parent's.
        done = threading.Event()
        layer._deferral.add(lambda: True, done.set)
        os._exit(0 if done.wait(5) else 1)


def test_a_fork_during_emission_does_not_wait():
    deferral, ended = Deferral(), threading.Event()

    def fork():
        deferral.pause()
        deferral.resume()
        ended.set()

    deferral.add(lambda: True, fork)
    assert ended.wait(0.9)


def test_without_a_thread_emission_is_immediate(monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    deferral, done = Deferral(), []
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refuse)
        assert deferral.add(lambda: False, lambda: done.append("at once"))
        assert done == ["at once"]
    assert deferral.add(lambda: True, lambda: done.append("by a thread"))
    assert (deferral.drain(5), done) == (0, ["at once", "by a thread"])


def test_nothing_is_kept_of_what_was_run():
    class Tensor:
        pass

    deferral, tensor = Deferral(), Tensor()
    gone = weakref.ref(tensor)
    deferral.add(lambda: True, partial(id, tensor))
    del tensor
    deferral.drain(5)
    assert gone() is None


def test_without_work_there_is_no_thread(monkeypatch):
    monkeypatch.setattr(deferral_module, "_IDLE_SECONDS", 0.01)
    deferral, done = Deferral(), []
    for number in range(2):
        deferral.add(lambda: True, lambda number=number: done.append(number))
        thread = deferral._thread
        if thread is not None:
            thread.join(10)
            assert not thread.is_alive()
    assert done == [0, 1]


def test_spans_and_metrics_are_not_made_by_the_thread_that_asked_for_the_song(layer, device):
    device.done.set()
    makers = set()
    layer.traced.tracer_provider.add_span_processor(ThreadNames(makers))
    run(layer)
    layer.flush(5)
    assert tree(layer.traced.spans) == [("generate_music", ["acestep.vae.decode"])]
    assert makers == {"acestep-otel-deferral"}


def test_a_failure_is_emitted_at_once_because_its_traceback_keeps_tensors(layer, device):
    device.done.set()
    makers = set()
    layer.traced.tracer_provider.add_span_processor(ThreadNames(makers))

    def fail():
        raise ValueError("no room")

    with pytest.raises(ValueError, match="no room"):
        run(layer, fail)
    assert makers == {threading.current_thread().name}


class ThreadNames(SpanProcessor):
    """Notes which threads end spans."""

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def on_end(self, span):
        self.names.add(threading.current_thread().name)


class SlowExport(SpanProcessor):
    """Holds a lock while a span ends, as the SDK does; for a tenth of a second, or until it is told."""

    def __init__(self, until: threading.Event | None = None) -> None:
        self.lock, self.begun, self.ended = threading.Lock(), threading.Event(), 0
        self.until = until or threading.Event()
        self.seconds = 0.1 if until is None else 10

    def on_end(self, span):
        with self.lock:
            self.begun.set()
            self.until.wait(self.seconds)
            self.ended += 1
