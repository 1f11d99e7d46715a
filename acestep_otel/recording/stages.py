"""What one request did: a tree of stages with marks, built while it runs and turned into telemetry after it.

The engine's seams call ``begin`` and ``end``. Both cost some ten microseconds, create no span and never raise: a fault
in here loses telemetry, not a song.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from acestep_otel.recording.clock import Clock, Mark, host_mark
from acestep_otel.recording.phase import PhaseRecord
from acestep_otel.recording.vram import VramPeak, VramReading, VramTracker
from acestep_otel.settings import Detail

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("acestep_otel")

AttributeValue = str | bool | int | float
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
        vram: VRAM in use on exit; ``None`` off CUDA.
        peak: VRAM peak of a stage that tracks memory.
        phase: token times of a planner phase.
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


class RequestRecording:
    """The tree of one request, and the stack of its open stages.

    A request is run by one thread at a time, so the stack needs no lock.
    """

    def __init__(self, root: str, *, clock: Clock, device: torch.device, detail: Detail, vram: VramTracker) -> None:
        self.clock = clock
        self.device = device
        self.detail = detail
        self._vram = vram
        self.root = Stage(root, host_mark(), device_clock=False)
        self._open = [self.root]

    @property
    def innermost(self) -> Stage:
        """The stage that is running now."""
        return self._open[-1]

    def begin(self, name: str, *, device_clock: bool, tracks_memory: bool) -> Stage:
        """Open a stage inside the innermost one."""
        if tracks_memory:
            self._vram.begin(self.device)
        stage = Stage(name, self.clock.mark() if device_clock else host_mark(), device_clock)
        self._open[-1].children.append(stage)
        self._open.append(stage)
        return stage

    def end(self, stage: Stage, error: BaseException | None = None, *, tracks_memory: bool = False) -> None:
        """Close a stage, and any that was left open inside it."""
        stage.error = error
        # The host's time stands when the device's clock fails: a stage without an end would cost the whole trace.
        stage.end = host_mark()
        while self._open and self._open.pop() is not stage:
            pass
        if stage.device_clock:
            stage.end = self.clock.mark()
        stage.vram = self._vram.read(self.device)
        if tracks_memory and stage.vram is not None:
            stage.peak = stage.vram.peak


_current: ContextVar[RequestRecording | None] = ContextVar("acestep_otel_recording", default=None)

set_current: Final = _current.set
reset_current: Final = _current.reset


def current_recording() -> RequestRecording | None:
    """The recording of the request that this context is running; ``None`` when there is none."""
    return _current.get()


def never_raises(
    function: Callable[Parameters, Result],
) -> Callable[Parameters, Result | None]:
    """Turn a fault of the tracing layer into one debug line and ``None``."""

    @wraps(function)
    def guarded(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result | None:
        try:
            return function(*args, **kwargs)
        except Exception:
            logger.debug("tracing failed in %s; inference goes on", function.__qualname__, exc_info=True)
            return None

    return guarded
