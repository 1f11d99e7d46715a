"""A chart together with its figures, so that nothing is said by a picture alone."""

from __future__ import annotations

from dataclasses import dataclass

from acestep_otel.profiler.report.html.charts import Chart
from acestep_otel.profiler.report.html.curve import CurveChart


@dataclass(frozen=True, slots=True)
class Table:
    """Figures behind a chart.

    Attributes:
        columns: headings; the first one heads the names of the rows.
        rows: as many cells each.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart, what its colours mean, and its figures.

    Attributes:
        chart: the drawing.
        legend: class of the style sheet, and meaning.
        table: the same in numbers.
    """

    chart: Chart
    legend: tuple[tuple[str, str], ...]
    table: Table


@dataclass(frozen=True, slots=True)
class CurveFigure:
    """The same with values over time."""

    chart: CurveChart
    legend: tuple[tuple[str, str], ...]
    table: Table
