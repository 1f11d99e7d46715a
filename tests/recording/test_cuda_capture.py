"""Asking the device while other threads record CUDA graphs: a double of the driver, and a GPU where there is one."""

import ctypes
import threading

import pytest
import torch

from acestep_otel.recording import clock as captures
from acestep_otel.recording.clock import Clocks, HostClock, beside_captures

GLOBAL, THREAD_LOCAL = 0, 1
INVALID_CONTEXT = 201


class Driver:
    """Keeps a thread's mode, as the driver does."""

    def __init__(self, answer: int = 0) -> None:
        self.mode, self.answer, self.calls = GLOBAL, answer, 0

    def __call__(self, _name: str) -> "Driver":
        return self

    def cuThreadExchangeStreamCaptureMode(self, pointer) -> int:  # noqa: N802 - the driver's name
        self.calls += 1
        if self.answer == 0:
            mode = pointer._obj
            self.mode, mode.value = mode.value, self.mode
        return self.answer


@pytest.fixture
def install(monkeypatch):
    def use(library):
        captures._exchange.cache_clear()
        monkeypatch.setattr(ctypes, "CDLL", library)
        return library

    yield use
    captures._exchange.cache_clear()


def test_a_query_considers_only_captures_of_its_thread(install):
    driver = install(Driver())
    with beside_captures():
        assert driver.mode == THREAD_LOCAL
    assert driver.mode == GLOBAL


def test_the_mode_that_the_thread_had_comes_back_after_a_failure(install):
    driver = install(Driver())
    driver.mode = 2
    with pytest.raises(RuntimeError, match="lost"), beside_captures():
        raise RuntimeError("the device is lost")
    assert driver.mode == 2


def test_a_driver_that_refuses_is_not_queried_again(install):
    driver = install(Driver(answer=INVALID_CONTEXT))
    with beside_captures():
        pass
    assert (driver.mode, driver.calls) == (GLOBAL, 1)


def test_without_a_driver_nothing_is_changed(install):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    install(missing)
    with beside_captures():
        pass


needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def capture_while(ask) -> torch.Tensor:
    """Record a graph in PyTorch's default mode, let another thread ask in the middle of it, and replay it."""
    graph, values = torch.cuda.CUDAGraph(), torch.zeros(4, device="cuda")
    (values + 1).sum()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        values += 1
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    graph.replay()
    return values.cpu()


@needs_a_gpu
def test_times_are_read_while_another_thread_records_a_graph():
    clock = Clocks().for_device(torch.device("cuda"), HostClock())
    marks = [clock.mark(), clock.mark()]
    times = []
    assert capture_while(lambda: times.extend(clock.resolve(marks))).tolist() == [1.0] * 4
    assert times == sorted(times)
    assert all(mark.event is not None for mark in marks)


@needs_a_gpu
def test_a_thread_that_queries_without_the_mode_invalidates_the_graph():
    """Else the test above could not fail."""
    event = torch.cuda.Event()
    event.record()
    torch.cuda.synchronize()

    def ask() -> None:
        with pytest.raises(RuntimeError, match="captur"):
            event.query()

    with pytest.raises(RuntimeError, match="captur"):
        capture_while(ask)
