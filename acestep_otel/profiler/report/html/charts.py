"""Two kinds of bar chart, laid out in drawing units: horizontal bars in rows, and vertical bars over an index.

A drawing is ``WIDTH`` units wide; at its natural size one unit is one CSS pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from acestep_otel.profiler.report.html.quantities import Axis

WIDTH: Final = 1000
RIGHT: Final = WIDTH - 16
"""The end of time axes, in drawing units."""
AXIS_HEIGHT: Final = 24
"""Room for tick labels below a drawing, in drawing units."""
_LABELS: Final = 150
_ROW: Final = 34
_ROW_GAP: Final = 12
_REFERENCE: Final = 22
"""Room above the rows for the label of a reference line."""
_COLUMNS_TOP: Final = 24
_COLUMNS_HEIGHT: Final = 170
_COLUMNS_LEFT: Final = 72
_MOST_INDEX_LABELS: Final = 25
_WIDEST_COLUMN: Final = 64
_CHARACTER: Final = 8.5
"""Room for a character, with a margin because fonts differ."""


@dataclass(frozen=True, slots=True)
class Part:
    """A value to draw: one segment of a row, or one bar of a column.

    Attributes:
        value: in the axis's unit.
        style: class of the style sheet that colours it.
        title: its tooltip.
        text: label on it, if there is room.
    """

    value: float
    style: str
    title: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Bar:
    """A rectangle, in drawing units, and its label."""

    x: float
    y: float
    width: float
    height: float
    style: str
    title: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Label:
    """A word, in drawing units; ``y`` is its middle."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """The data that a template renders.

    Attributes:
        summary: the chart in one sentence, for screen readers.
        height: drawing units.
        left: start of the bars, in drawing units.
        bottom: end of the bars and start of the tick labels, in drawing units.
        axis: the axis of values.
        bars: in the order they are painted.
        labels: of rows or columns.
        reference: position and label of a dashed line across the bars; ``None`` for none.
    """

    summary: str
    height: float
    left: float
    bottom: float
    axis: Axis
    bars: tuple[Bar, ...]
    labels: tuple[Label, ...]
    reference: Label | None = None


def row_chart(
    summary: str,
    rows: Sequence[tuple[str, Sequence[Part]]],
    text: Callable[[float], str],
    *,
    stacked: bool,
    unit: float = 1.0,
    reference: tuple[float, str] | None = None,
) -> Chart:
    """Horizontal bars, one row for each label.

    Args:
        summary: the chart in one sentence.
        rows: label and parts of each; an empty label takes no room.
        text: formats a value of the axis.
        stacked: parts follow one another; otherwise each starts at zero, and later ones are drawn on top, thinner.
        unit: ticks are round multiples of this.
        reference: a value of interest and its name, for a dashed line across all rows.
    """
    left = _LABELS if any(label for label, _ in rows) else 0
    top = 0 if reference is None else _REFERENCE
    largest = max((0.0 if reference is None else reference[0], *(_reach(parts, stacked) for _, parts in rows)))
    axis = Axis.covering(largest, start=left, length=RIGHT - left, text=text, unit=unit)
    bars: list[Bar] = []
    labels: list[Label] = []
    for index, (label, parts) in enumerate(rows):
        y = top + index * (_ROW + _ROW_GAP)
        labels.append(Label(left - 12, y + _ROW / 2, label))
        first = 0.0
        for layer, part in enumerate(parts):
            inset = 0 if stacked else 5 * layer
            width = axis.extent(first, first + part.value)
            written = part.text if len(part.text) * _CHARACTER <= width else ""
            bars.append(Bar(axis.at(first), y + inset, width, _ROW - 2 * inset, part.style, part.title, written))
            first += part.value if stacked else 0.0
    bottom = top + len(rows) * (_ROW + _ROW_GAP)
    line = None if reference is None else Label(axis.at(reference[0]), _REFERENCE / 2, reference[1])
    return Chart(summary, bottom + AXIS_HEIGHT, left, bottom, axis, tuple(bars), tuple(labels), line)


def column_chart(
    summary: str,
    columns: Sequence[tuple[str, Sequence[Part]]],
    text: Callable[[float], str],
    reference: tuple[float, str] | None = None,
) -> Chart:
    """Vertical bars, a group of them side by side for each label, and a dashed line at a value of interest."""
    largest = max((part.value for _, parts in columns for part in parts), default=0.0)
    bottom = _COLUMNS_TOP + _COLUMNS_HEIGHT
    axis = Axis.covering(largest, start=bottom, length=-_COLUMNS_HEIGHT, text=text)
    pitch = (RIGHT - _COLUMNS_LEFT) / max(1, len(columns))
    room = min(pitch * 0.84, _WIDEST_COLUMN)
    labelled_every = -(-len(columns) // _MOST_INDEX_LABELS)
    bars: list[Bar] = []
    labels: list[Label] = []
    for index, (label, parts) in enumerate(columns):
        middle = _COLUMNS_LEFT + pitch * (index + 0.5)
        if index % labelled_every == 0:
            labels.append(Label(round(middle, 2), bottom + AXIS_HEIGHT / 2, label))
        width = room / max(1, len(parts))
        for place, part in enumerate(parts):
            x = round(middle - room / 2 + width * place, 2)
            height = axis.extent(0, part.value)
            bars.append(Bar(x, round(bottom - height, 2), round(width, 2), height, part.style, part.title))
    line = None if reference is None else Label(_COLUMNS_LEFT, axis.at(reference[0]), reference[1])
    return Chart(summary, bottom + AXIS_HEIGHT, _COLUMNS_LEFT, bottom, axis, tuple(bars), tuple(labels), line)


def _reach(parts: Sequence[Part], stacked: bool) -> float:
    values = [part.value for part in parts]
    return sum(values) if stacked else max(values, default=0.0)
