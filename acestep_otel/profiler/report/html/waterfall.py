"""The trace over time: one lane for each span, and one for siblings of one name that have no children."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from acestep_otel import semconv
from acestep_otel.profiler.report.html.charts import AXIS_HEIGHT, RIGHT
from acestep_otel.profiler.report.html.figure import colour_of
from acestep_otel.profiler.report.html.quantities import ABSENT, Axis, duration, size
from acestep_otel.profiler.report.spans import FinishedSpan, Run

_LABELS: Final = 196
_DURATIONS: Final = 276
_LANE: Final = 24
_NARROWEST: Final = 1.5
_QUANTITIES: Final = {"s": duration, "By": size}
"""Formats of values, by their unit."""
_COLUMNS_OF_THEIR_OWN: Final = frozenset({semconv.CLOCK, semconv.HOST_DURATION, semconv.RUN_ID})


@dataclass(frozen=True, slots=True)
class SpanFacts:
    """The properties of a span, as text.

    Attributes:
        span_id: of the trace.
        name: its name in the conventions.
        depth: of the tree; the root has 0.
        start: time since the root started.
        duration: on its clock.
        clock: ``host`` or ``cuda_event``.
        host_duration: time that the host spent in the call.
        failure: class name of the exception, or ``None``.
        attributes: the rest, name and value.
    """

    span_id: str
    name: str
    depth: int
    start: str
    duration: str
    clock: str
    host_duration: str
    failure: str | None
    attributes: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class SpanBar:
    """The position of a span in its lane, in drawing units."""

    x: float
    width: float
    style: str
    span: SpanFacts


@dataclass(frozen=True, slots=True)
class Lane:
    """One line of the drawing.

    Attributes:
        y: its middle, in drawing units.
        indent: of the label, in drawing units.
        label: name and number of its spans.
        duration: total duration of its spans.
        bars: in order of start.
    """

    y: float
    indent: float
    label: str
    duration: str
    bars: tuple[SpanBar, ...]


@dataclass(frozen=True, slots=True)
class Waterfall:
    """The data that the template renders.

    Attributes:
        height: drawing units.
        bottom: end of the lanes and start of the tick labels, in drawing units.
        axis: time since the root started.
        lanes: from the root down, depth first.
        lane_height: drawing units.
        durations: end of the column of durations, in drawing units.
        spans: every span, from the root down, depth first.
    """

    height: float
    bottom: float
    axis: Axis
    lanes: tuple[Lane, ...]
    lane_height: float
    durations: float
    spans: tuple[SpanFacts, ...]


def waterfall(run: Run) -> Waterfall:
    """Lay out a run."""
    start = _DURATIONS + 14
    axis = Axis.covering(run.root.seconds, start=start, length=RIGHT - start, text=duration)
    facts: list[SpanFacts] = []
    lanes: list[Lane] = []
    for index, (depth, group) in enumerate(_lanes(run)):
        of_group = [_facts(span, depth, run.root) for span in group]
        facts += of_group
        name = semconv.stage_of(group[0].name)
        lanes.append(
            Lane(
                y=index * _LANE + _LANE / 2,
                indent=12.0 * depth,
                label=name if len(group) == 1 else f"{name} × {len(group)}",
                duration=duration(sum(span.seconds for span in group)),
                bars=tuple(_bar(axis, span, run.root, known) for span, known in zip(group, of_group, strict=True)),
            )
        )
    bottom = len(lanes) * _LANE
    return Waterfall(bottom + AXIS_HEIGHT, bottom, axis, tuple(lanes), _LANE, _DURATIONS, tuple(facts))


def _lanes(run: Run) -> Iterator[tuple[int, list[FinishedSpan]]]:
    """Depth and spans of each lane, depth first."""
    children: dict[str | None, list[FinishedSpan]] = {}
    for span in run.spans:
        children.setdefault(span.parent_id, []).append(span)

    def below(parent: FinishedSpan, depth: int) -> Iterator[tuple[int, list[FinishedSpan]]]:
        leaves: dict[str, list[FinishedSpan]] = {}
        for span in children.get(parent.span_id, ()):
            if span.span_id not in children:
                leaves.setdefault(span.name, []).append(span)
        for span in children.get(parent.span_id, ()):
            if span.span_id in children:
                yield depth, [span]
                yield from below(span, depth + 1)
            elif span is leaves[span.name][0]:
                yield depth, leaves[span.name]

    yield 0, [run.root]
    yield from below(run.root, 1)


def _facts(span: FinishedSpan, depth: int, root: FinishedSpan) -> SpanFacts:
    return SpanFacts(
        span_id=span.span_id,
        name=span.name,
        depth=depth,
        start=duration((span.start_ns - root.start_ns) / 1e9),
        duration=duration(span.seconds),
        clock=str(span.attributes.get(semconv.CLOCK, ABSENT)),
        host_duration=duration(span.attributes.get(semconv.HOST_DURATION)),
        failure=(span.error or "error") if span.status == "error" else None,
        attributes=tuple(
            (name, _written(value, _unit(name)))
            for name, value in span.attributes.items()
            if name not in _COLUMNS_OF_THEIR_OWN
        ),
    )


def _unit(attribute: str) -> str:
    definition = semconv.ATTRIBUTES.get(attribute)
    return "" if definition is None else definition.unit


def _written(value: object, unit: str = "") -> str:
    if isinstance(value, (float, int)) and unit in _QUANTITIES:
        return _QUANTITIES[unit](value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_written, value))
    return str(value)


def _bar(axis: Axis, span: FinishedSpan, root: FinishedSpan, facts: SpanFacts) -> SpanBar:
    first, last = (span.start_ns - root.start_ns) / 1e9, (span.end_ns - root.start_ns) / 1e9
    return SpanBar(axis.at(first), max(_NARROWEST, axis.extent(first, last)), colour_of(span.name), facts)
