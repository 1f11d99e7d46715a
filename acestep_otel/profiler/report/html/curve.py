"""Values over time, laid out in drawing units: each reading holds until the next one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from acestep_otel.profiler.report.html.charts import AXIS_HEIGHT, RIGHT, Label
from acestep_otel.profiler.report.html.quantities import Axis

_TOP: Final = 20
_HEIGHT: Final = 200
_LEFT: Final = 80


@dataclass(frozen=True, slots=True)
class Reading:
    """A value at one time.

    Attributes:
        time: seconds.
        value: in the axis's unit.
        title: its tooltip.
    """

    time: float
    value: float
    title: str


@dataclass(frozen=True, slots=True)
class Series:
    """Readings in order of time, and the class of the style sheet that colours them."""

    style: str
    readings: Sequence[Reading]


@dataclass(frozen=True, slots=True)
class Level:
    """A value that belongs to a stretch of time, for example a stage's peak."""

    start: float
    end: float
    value: float
    style: str
    title: str


@dataclass(frozen=True, slots=True)
class Point:
    """The position of a reading, in drawing units."""

    x: float
    y: float
    title: str


@dataclass(frozen=True, slots=True)
class Line:
    """A series, in drawing units.

    Attributes:
        style: class of the style sheet.
        path: SVG path: horizontal until the next reading, then vertical.
        points: of the readings.
    """

    style: str
    path: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """A level, in drawing units."""

    left: float
    right: float
    y: float
    style: str
    title: str


@dataclass(frozen=True, slots=True)
class CurveChart:
    """The data that a template renders.

    Attributes:
        summary: the chart in one sentence, for screen readers.
        height: drawing units.
        left: start of the time axis, in drawing units.
        bottom: position of zero and of the time labels, in drawing units.
        times: the axis of time.
        values: the axis of values.
        lines: in the order they are painted.
        segments: painted over them.
        reference: position and label of a dashed line across the drawing; ``None`` for none.
    """

    summary: str
    height: float
    left: float
    bottom: float
    times: Axis
    values: Axis
    lines: tuple[Line, ...]
    segments: tuple[Segment, ...]
    reference: Label | None = None


def curve_chart(
    summary: str,
    series: Sequence[Series],
    levels: Sequence[Level],
    *,
    duration: float,
    time_text: Callable[[float], str],
    value_text: Callable[[float], str],
    unit: float = 1.0,
    reference: tuple[float, str] | None = None,
) -> CurveChart:
    """Lay out curves and levels over an interval of time.

    Args:
        summary: the chart in one sentence.
        series: the curves, from back to front.
        levels: values of intervals of time.
        duration: seconds from the left to the right.
        time_text: formats a time.
        value_text: formats a value.
        unit: ticks of values are round multiples of this.
        reference: a value of interest and its name, for a dashed line.
    """
    bottom = _TOP + _HEIGHT
    heights = [reading.value for one in series for reading in one.readings] + [level.value for level in levels]
    heights += [] if reference is None else [reference[0]]
    times = Axis.covering(duration, start=_LEFT, length=RIGHT - _LEFT, text=time_text)
    values = Axis.covering(max(heights, default=0.0), start=bottom, length=-_HEIGHT, text=value_text, unit=unit)
    return CurveChart(
        summary,
        bottom + AXIS_HEIGHT,
        _LEFT,
        bottom,
        times,
        values,
        tuple(_line(one, times, values) for one in series),
        tuple(
            Segment(times.at(level.start), times.at(level.end), values.at(level.value), level.style, level.title)
            for level in levels
        ),
        None if reference is None else Label(_LEFT, values.at(reference[0]), reference[1]),
    )


def _line(series: Series, times: Axis, values: Axis) -> Line:
    points = tuple(Point(times.at(one.time), values.at(one.value), one.title) for one in series.readings)
    if not points:
        return Line(series.style, "", ())
    steps = "".join(f" H {point.x} V {point.y}" for point in points[1:])
    return Line(series.style, f"M {points[0].x} {points[0].y}{steps}", points)
