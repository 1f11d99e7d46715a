"""Clocks that determine when work was done, without a synchronisation.

A *mark* is taken while work is being enqueued; it becomes a time only later, when the clock *resolves* it after the
request's own synchronisation. On the host a mark is a reading of ``perf_counter_ns``. On CUDA it is an event
recorded on the current stream: the stream itself writes the time when it gets there.

CUDA events are mapped to wall time by one anchor per trace: an event on a private, idle stream, whose completion is
polled with ``cudaEventQuery`` (never synchronised). Events of all streams of a device share one clock, so the anchor
does not queue behind other work.

An event query is illegal while another thread records a CUDA graph in the default capture mode, and invalidates the
graph. Queries therefore run in the thread-local mode.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    import torch


_THREAD_LOCAL: Final = 1
"""``CU_STREAM_CAPTURE_MODE_THREAD_LOCAL``."""
_LIBRARY: Final = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

_Exchange = Callable[[Any], int]


@contextmanager
def beside_captures() -> Iterator[None]:
    """Allow this thread to query events and streams while other threads capture graphs.

    A capture in PyTorch's default mode forbids such queries in every thread, and fails if one is made. In the
    thread-local mode a thread is restricted by its own captures only. Without NVIDIA's driver nothing is changed.

    Source: CUDA driver API, ``cuThreadExchangeStreamCaptureMode``.
    """
    exchange = _exchange()
    mode = ctypes.c_int(_THREAD_LOCAL)
    changed = exchange is not None and exchange(ctypes.byref(mode)) == 0
    try:
        yield
    finally:
        if exchange is not None and changed:
            exchange(ctypes.byref(mode))


@cache
def _exchange() -> _Exchange | None:
    try:
        found: _Exchange = ctypes.CDLL(_LIBRARY).cuThreadExchangeStreamCaptureMode
    except (OSError, AttributeError):
        return None
    return found


HOST: Final = "host"
CUDA_EVENT: Final = "cuda_event"

_ANCHOR_TIMEOUT_NS: Final = 2_000_000
_ANCHOR_TRIES: Final = 5
_ANCHOR_PRECISION_NS: Final = 50_000
_COMPLETION_TIMEOUT_NS: Final = 1_000_000_000


@dataclass(slots=True)
class Mark:
    """A moment of the host, and the same place in the device's stream (``None`` on the host clock)."""

    host_ns: int
    event: Any = None


def host_mark() -> Mark:
    """A mark of the host's time alone."""
    return Mark(time.perf_counter_ns())


class Clock(Protocol):
    """Takes marks and resolves them to wall time."""

    name: str

    def mark(self) -> Mark:
        """Mark this moment without waiting for anything."""

    def reached(self, mark: Mark) -> bool:
        """Whether a mark can be resolved without waiting."""

    def resolve(self, marks: Sequence[Mark]) -> list[int]:
        """Unix times in integer nanoseconds, one per mark, in order. Each mark is resolved at most once."""


class HostClock:
    """``perf_counter_ns``, mapped to wall time by one anchor taken when the clock is made."""

    name = HOST

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.perf_counter_ns()

    def mark(self) -> Mark:
        """The host's time now."""
        return host_mark()

    def reached(self, mark: Mark) -> bool:  # noqa: ARG002 - the host is always there
        """Always true."""
        return True

    def time_of(self, mark: Mark) -> int:
        """Unix time, in integer nanoseconds, of the host's side of a mark."""
        return mark.host_ns + self._offset_ns

    def resolve(self, marks: Sequence[Mark]) -> list[int]:
        """The host's times."""
        return [self.time_of(mark) for mark in marks]


@dataclass(frozen=True, slots=True)
class _Anchor:
    """An event, the Unix time at which it was seen complete, and how much earlier it may have been."""

    event: Any
    unix_ns: int
    uncertainty_ns: int


class CudaEventClock:
    """CUDA events on the current stream of one device.

    A span between two marks is stream time: from when the stream reached the first mark to when it reached the
    second. It includes time in which the stream was idle because the host had not launched the next kernel.
    """

    name = CUDA_EVENT

    def __init__(self, events: EventPool, host: HostClock) -> None:
        self._host = host
        self._events = events

    def mark(self) -> Mark:
        """Record an event on the device's current stream."""
        event = self._events.take()
        event.record(self._events.current_stream())
        return Mark(time.perf_counter_ns(), event)

    def reached(self, mark: Mark) -> bool:
        """Whether the stream has reached the event; the query does not wait."""
        if mark.event is None:
            return True
        with self._events.asking():
            return bool(mark.event.query())

    def resolve(self, marks: Sequence[Mark]) -> list[int]:
        """Read the events. If the last one is reached, the others usually are too; otherwise this waits up to a second.

        Marks of the host alone, marks that do not complete, and all marks when the anchor does not, keep the host's
        time.
        """
        with self._events.asking():
            return self._resolve(marks)

    def _resolve(self, marks: Sequence[Mark]) -> list[int]:
        anchor = self._anchor()
        times: list[int] = []
        deadline = time.perf_counter_ns() + _COMPLETION_TIMEOUT_NS
        for mark, host_ns in zip(marks, self._host.resolve(marks), strict=True):
            if mark.event is None or anchor is None or not _completed(mark.event, deadline):
                # The mark records which clock it used.
                mark.event = None
                times.append(host_ns)
                continue
            times.append(anchor.unix_ns - round(mark.event.elapsed_time(anchor.event) * 1e6))
            self._events.give_back(mark.event)
        if anchor is not None:
            self._events.give_back(anchor.event)
        return times

    def _anchor(self) -> _Anchor | None:
        """The most precise of several attempts: another thread may run between any two steps of an attempt."""
        best: _Anchor | None = None
        for _ in range(_ANCHOR_TRIES):
            if (found := self._try_anchor()) is None:
                break
            if best is not None:
                best, worse = sorted((best, found), key=lambda anchor: anchor.uncertainty_ns)
                self._events.give_back(worse.event)
            else:
                best = found
            if best.uncertainty_ns <= _ANCHOR_PRECISION_NS:
                break
        return best

    def _try_anchor(self) -> _Anchor | None:
        event = self._events.take()
        start = time.perf_counter_ns()
        event.record(self._events.idle_stream)
        while not event.query():
            if time.perf_counter_ns() - start > _ANCHOR_TIMEOUT_NS:
                return None
        return _Anchor(event, time.time_ns(), time.perf_counter_ns() - start)


def _completed(event: Any, deadline_ns: int) -> bool:
    while not event.query():
        if time.perf_counter_ns() > deadline_ns:
            return False
        time.sleep(0.0005)
    return True


class EventPool:
    """Reusable timing events of one device, and a private stream."""

    def __init__(self, index: int) -> None:
        import torch

        # PyTorch's stubs leave streams and events untyped.
        self._cuda: Any = torch.cuda
        # A look-up by number is faster than one by device.
        self._index = index
        self._free: deque[Any] = deque()
        # PyTorch launches its own kernels with it, but does not document it.
        self._current_handle: Callable[[int], int] = getattr(
            torch._C, "_cuda_getCurrentRawStream", lambda index: self._cuda.current_stream(index).cuda_stream
        )
        self._streams: dict[int, Any] = {}
        self.idle_stream = self._cuda.Stream(index)

    def current_stream(self) -> Any:
        """The stream that the calling thread works on.

        Identified by its handle: creating a stream object takes several times as long.
        """
        handle = self._current_handle(self._index)
        if (stream := self._streams.get(handle)) is None:
            stream = self._streams[handle] = self._cuda.current_stream(self._index)
        return stream

    @contextmanager
    def asking(self) -> Iterator[None]:
        """The context of event queries, for any thread.

        The runtime creates a context on the current device of the querying thread: hundreds of MiB, if the process
        does not use that device otherwise.
        """
        with self._cuda.device(self._index), beside_captures():
            yield

    def take(self) -> Any:
        """An event that is not in use."""
        try:
            return self._free.pop()
        except IndexError:
            return self._cuda.Event(enable_timing=True)

    def give_back(self, event: Any) -> None:
        """Make a resolved event available again."""
        self._free.append(event)


class Clocks:
    """Makes the clock of a request: CUDA events on a CUDA device, else the host."""

    def __init__(self) -> None:
        self._pools: dict[int, EventPool] = {}

    def for_device(self, device: torch.device, host: HostClock) -> Clock:
        """The clock of one request.

        Args:
            device: device that the request runs on.
            host: the request's host clock: returned off CUDA, and otherwise used to resolve marks of the host.
        """
        if device.type != "cuda":
            return host
        import torch

        index = torch.cuda.current_device() if device.index is None else device.index
        if (pool := self._pools.get(index)) is None:
            pool = self._pools.setdefault(index, EventPool(index))
        return CudaEventClock(pool, host)
