"""The tree of one request: its stages, the stack of those that are open, and which request a context runs.

Annotations are attributes that the application puts on every span of the requests made inside a block.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from acestep_otel import semconv
from acestep_otel.recording.clock import Clock, Mark, host_mark
from acestep_otel.recording.energy import Readings
from acestep_otel.recording.phase import PhaseRecord
from acestep_otel.recording.vram import VramPeak, VramReading, VramTracker
from acestep_otel.roofline.work import Pass
from acestep_otel.settings import Detail

if TYPE_CHECKING:
    import torch


logger = logging.getLogger("acestep_otel")

AttributeValue = str | bool | int | float
Attributes = Mapping[str, AttributeValue]
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


@dataclass(slots=True, eq=False)
class Stage:
    """One node of the tree.

    Attributes:
        name: the span's name (``acestep_otel.semconv``).
        start: mark taken on entry.
        device_clock: whether the span's times come from the device's clock; else from the host's.
        end: mark taken on exit; ``None`` while it runs.
        attributes: what is known about it so far.
        children: stages inside it, in order.
        error: the exception that ended it.
        vram: VRAM in use on exit; ``None`` off CUDA, and where it is not read.
        peak: VRAM peak of a stage that tracks memory.
        phase: token times of a planner phase.
        passes: of the models that ran while it was the innermost one.
        finish_reasons: why each text or song ended; none where that is not known.
        songs: files of a request, where they belong in its trace.
        tracks_memory: whether its memory peak is taken when it ends.
        reads_memory: whether VRAM in use is read when it ends.
        device: whose memory that is; ``None`` for the request's.
    """

    name: str
    start: Mark
    device_clock: bool
    end: Mark | None = None
    attributes: dict[str, AttributeValue] = field(default_factory=dict)
    children: list[Stage] = field(default_factory=list)
    error: BaseException | None = None
    vram: VramReading | None = None
    peak: VramPeak | None = None
    phase: PhaseRecord | None = None
    passes: list[Pass] = field(default_factory=list)
    finish_reasons: tuple[str, ...] = ()
    songs: tuple[Path, ...] = ()
    tracks_memory: bool = False
    reads_memory: bool = True
    device: torch.device | None = None


class RequestRecording:
    """The tree of one request, and the stack of its open stages.

    A request is run by one thread at a time, so the stack needs no lock.

    Attributes:
        clock: takes the marks of stages on the device.
        device: device that the request runs on.
        detail: how deep the tree goes.
        root: the outermost stage.
        outlasted: whether the device was still working when the request returned.
        error: the last exception that ended a stage, including one that the engine recovered from.
        run_in_range: runs a stage under its name in a profile of the request; ``None`` without a profile.
        energy: readings of the card's energy; ``None`` off CUDA.
        energy_shared: whether another request ran on the card.
    """

    def __init__(self, root: Stage, *, clock: Clock, device: torch.device, detail: Detail, vram: VramTracker) -> None:
        self.clock = clock
        self.device = device
        self.detail = detail
        self._vram = vram
        self.root = root
        self._open = [root]
        self.outlasted = False
        self.error: BaseException | None = None
        self.run_in_range: Callable[[str, Callable[[], Any]], Any] | None = None
        self.energy: Readings | None = None
        self.energy_shared = False
        self._latest: Mark | None = None

    @property
    def open_stages(self) -> list[Stage]:
        """The stages that are running now, outermost first; may be called by another thread."""
        return list(self._open)

    @property
    def innermost(self) -> Stage:
        """The stage that is running now."""
        return self._open[-1]

    def begin(
        self, name: str, *, detail: Detail, device_clock: bool, tracks_memory: bool, device: torch.device | None = None
    ) -> Stage:
        """Open a stage inside the innermost one.

        Args:
            name: name of the span.
            detail: level from which on it is recorded.
            device_clock: whether its times come from the device's clock.
            tracks_memory: whether its memory peak is taken.
            device: whose memory that is; the request's when not given.
        """
        elsewhere = device if device != self.device else None
        if tracks_memory:
            self._vram.begin(elsewhere or self.device)
        start = self._device_mark() if device_clock else host_mark()
        # Reading the counters is the most expensive part of ``end``: for steps and tiles only at the finest level.
        reads_memory = tracks_memory or detail <= Detail.STAGE or self.detail >= Detail.TOKEN
        stage = Stage(name, start, device_clock, tracks_memory=tracks_memory, reads_memory=reads_memory)
        if elsewhere is not None:
            stage.device = elsewhere
            stage.attributes[semconv.DEVICE] = str(elsewhere)
        self._open[-1].children.append(stage)
        self._open.append(stage)
        return stage

    def end(self, stage: Stage, error: BaseException | None = None) -> None:
        """Close a stage, and any that was left open inside it; one that is closed already stays as it is."""
        if stage not in self._open:
            return
        if error is not None:
            self.error = error
        position = self._open.index(stage)
        closing, self._open[position:] = self._open[position:], []
        for inner in closing:
            # If the device's clock fails, the host's time is kept: a stage without an end would cost the whole trace.
            inner.error, inner.end = error, host_mark()
        for inner in reversed(closing):
            if inner.device_clock:
                inner.end = self._device_mark()
            if inner.reads_memory:
                inner.vram = self._vram.read(inner.device or self.device)
            if inner.tracks_memory and inner.vram is not None:
                inner.peak = inner.vram.peak

    def running(self, name: str) -> Stage | None:
        """The innermost open stage of a name; ``None`` when there is none."""
        return next((stage for stage in reversed(self._open) if stage.name == name), None)

    @property
    def is_over(self) -> bool:
        """Whether the request has ended, or the process did not wait for its end."""
        return not self._open

    def abandon(self) -> None:
        """Mark the request as over, without an end."""
        self._open.clear()

    @property
    def reached(self) -> bool:
        """Whether the device has reached every mark."""
        return self._latest is None or self.clock.reached(self._latest)

    def _device_mark(self) -> Mark:
        self._latest = self.clock.mark()
        return self._latest


class Unrecorded:
    """Stands in for the recording of a request that was sampled out.

    Attributes:
        is_over: whether the request has ended.
    """

    is_over = False

    def abandon(self) -> None:
        """Mark the request as over."""
        self.is_over = True


@dataclass(frozen=True, slots=True)
class _Running:
    """A request, and the thread that runs it.

    A task or thread that was started inside a request has a copy of its context, and may outlive it.
    """

    request: RequestRecording | Unrecorded
    thread: int


_current: ContextVar[_Running | None] = ContextVar("acestep_otel_recording", default=None)

reset_current: Final = _current.reset


def set_current(request: RequestRecording | Unrecorded) -> Token[_Running | None]:
    """Make a request the current one of this context and this thread."""
    return _current.set(_Running(request, threading.get_ident()))


def take_over() -> None:
    """Continue the request of a copied context in this thread, while its own thread waits."""
    running = _current.get()
    if running is not None:
        _current.set(replace(running, thread=threading.get_ident()))


def _request_here() -> RequestRecording | Unrecorded | None:
    running = _current.get()
    if running is None or running.request.is_over or running.thread != threading.get_ident():
        return None
    return running.request


def inside_request() -> bool:
    """Whether this context is running a request, recorded or not, in this thread."""
    return _request_here() is not None


def current_recording() -> RequestRecording | None:
    """The recording of the request that this context is running in this thread; ``None`` when there is none."""
    current = _request_here()
    return current if isinstance(current, RequestRecording) else None


def never_raises(
    function: Callable[Parameters, Result],
) -> Callable[Parameters, Result | None]:
    """Turn a fault of the tracing layer into one debug line and ``None``."""

    @wraps(function)
    def guarded(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result | None:
        try:
            return function(*args, **kwargs)
        except Exception:
            logger.debug("tracing failed in %s; inference continues", function.__qualname__, exc_info=True)
            return None

    return guarded


@never_raises
def running_phase() -> tuple[RequestRecording, PhaseRecord] | None:
    """The recording of the current request and the planner phase that it is in; ``None`` outside of one."""
    recording = current_recording()
    if recording is None or recording.innermost.phase is None:
        return None
    return recording, recording.innermost.phase


_annotations: ContextVar[Attributes | None] = ContextVar("acestep_otel_annotations", default=None)


@contextmanager
def annotated(attributes: Attributes) -> Iterator[None]:
    """Put attributes on every span of the requests made inside the block; blocks add up."""
    token = _annotations.set({**current_annotations(), **attributes})
    try:
        yield
    finally:
        _annotations.reset(token)


def warmup() -> AbstractContextManager[None]:
    """Mark the spans of requests made inside the block with ``acestep.warmup``."""
    return annotated({semconv.WARMUP: True})


def is_measured(attributes: Attributes) -> bool:
    """Whether requests with these attributes count in metrics.

    A warm-up could not be removed from a sum or a histogram afterwards.
    """
    return not attributes.get(semconv.WARMUP)


def current_annotations() -> Attributes:
    """The annotations of the enclosing blocks."""
    return _annotations.get() or {}
