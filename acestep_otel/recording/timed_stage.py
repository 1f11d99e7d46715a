"""From the marks of a finished recording to a tree of stages with times that nest.

All marks are resolved together. A child is within its parent and does not start before its preceding sibling ended, so
rows can be added up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Final

from acestep_otel import semconv
from acestep_otel.recording.clock import Mark
from acestep_otel.recording.phase import PhaseTimes
from acestep_otel.recording.stage_work import own_stage
from acestep_otel.recording.trace_tree import RequestRecording, Stage
from acestep_otel.roofline.peaks import Peaks
from acestep_otel.roofline.roofline import Roofline
from acestep_otel.roofline.work import Part

_LAUNCHING: Final = 0.9
"""Share of a stage's time on the device from which on the host, busy in the same call, is what it waited for."""


@dataclass(frozen=True, slots=True)
class TimedStage:
    """A stage with its times.

    Attributes:
        stage: as it was recorded.
        start_ns: Unix nanoseconds.
        end_ns: Unix nanoseconds.
        host_seconds: seconds that the host was busy in the call.
        phase: times of its passes; ``None`` unless it is a phase of the language model.
        children: stages inside it, in the order of their starts.
    """

    stage: Stage
    start_ns: int
    end_ns: int
    host_seconds: float
    phase: PhaseTimes | None
    children: tuple[TimedStage, ...]

    @property
    def parts(self) -> list[Part]:
        """The work of the stage and of everything below it."""
        own = [noted.part() for noted in self.stage.passes]
        return own + [part for child in self.children for part in child.parts]

    @property
    def own_parts(self) -> list[Part]:
        """The same without stages that metrics count by themselves."""
        own = [noted.part() for noted in self.stage.passes]
        return own + [part for child in self.children if not own_stage(child.stage) for part in child.own_parts]

    def roofline(self, peaks: Peaks | None) -> Roofline | None:
        """The work against the time it took; ``None`` without work."""
        parts = self.parts
        return Roofline.of(parts, self.seconds, peaks) if parts and self.seconds > 0 else None

    @property
    def waits_for_host(self) -> bool:
        """Whether the device waited for the host to launch its work, where it has a clock that can tell.

        Of the diffusion, a step or a tile: the host was busy in the call nearly as long as the device took. Of a
        phase of the language model, which is on the host's clock: by the lag of its passes. Of a decode: by its longest
        tile, since the host itself waits at its end; of the language model by its longest phase. Other stages wait for
        the device as well, so their host time says nothing.
        """
        if self.phase is not None:
            return self.phase.waits_for_host
        if self.stage.name in (semconv.LM, semconv.VAE_DECODE) and self.children:
            return max(self.children, key=lambda child: child.seconds).waits_for_host
        if self.stage.name not in (semconv.DIT, semconv.DIT_STEP, semconv.VAE_TILE):
            return False
        end = self.stage.end
        on_device = end is not None and None not in (self.stage.start.event, end.event)
        return on_device and self.host_seconds >= _LAUNCHING * self.seconds

    @property
    def seconds(self) -> float:
        """Duration."""
        return (self.end_ns - self.start_ns) / 1e9


def resolve(recording: RequestRecording) -> TimedStage:
    """Resolve every mark of the tree in one go and nest the times.

    Args:
        recording: finished, and the device has reached its last mark.
    """
    marks = [mark for stage in _walk(recording.root) for mark in _marks_of(stage)]
    times = iter(recording.clock.resolve(marks))
    taken = {id(stage): [next(times) for _ in _marks_of(stage)] for stage in _walk(recording.root)}
    if recording.outlasted:
        taken[id(recording.root)][1] = max(chain.from_iterable(taken.values()))
    start_ns, end_ns, *_ = taken[id(recording.root)]
    # The root's start is a mark of the host.
    offset_ns = start_ns - recording.root.start.host_ns
    return _nest(recording.root, taken, start_ns, max(start_ns, end_ns), offset_ns)


def _nest(stage: Stage, taken: Mapping[int, list[int]], earliest_ns: int, latest_ns: int, offset_ns: int) -> TimedStage:
    start_ns, end_ns, *inner = taken[id(stage)]
    start_ns = min(max(start_ns, earliest_ns), latest_ns)
    end_ns = min(max(end_ns, start_ns), latest_ns)
    children: list[TimedStage] = []
    cursor_ns = start_ns
    for child in stage.children:
        children.append(_nest(child, taken, cursor_ns, end_ns, offset_ns))
        cursor_ns = children[-1].end_ns
    assert stage.end is not None
    return TimedStage(
        stage=stage,
        start_ns=start_ns,
        end_ns=end_ns,
        host_seconds=(stage.end.host_ns - stage.start.host_ns) / 1e9,
        phase=None if stage.phase is None else PhaseTimes.of(stage.phase, inner, offset_ns),
        children=tuple(children),
    )


def _walk(stage: Stage) -> Iterator[Stage]:
    yield stage
    for child in stage.children:
        yield from _walk(child)


def _marks_of(stage: Stage) -> list[Mark]:
    assert stage.end is not None
    return [stage.start, stage.end, *(stage.phase.marks if stage.phase is not None else ())]
