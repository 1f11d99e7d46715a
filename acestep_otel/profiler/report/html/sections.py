"""The sections of one run, as text and drawings from its spans; a section without content is ``None``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from acestep_otel import semconv
from acestep_otel.profiler.report.breakdown import Breakdown, Row, breakdown_rows
from acestep_otel.profiler.report.html.charts import Chart, Part, column_chart, row_chart
from acestep_otel.profiler.report.html.figure import COMPONENTS, Figure, Table
from acestep_otel.profiler.report.html.quantities import ABSENT, duration, number, share
from acestep_otel.profiler.report.spans import FinishedSpan, Run


@dataclass(frozen=True, slots=True)
class BreakdownLine:
    """A line of the breakdown's table.

    Attributes:
        label: of the row.
        value: a duration, or a count.
        share: percentage of the wall time.
        is_child: whether it is part of the row above it.
        style: class of its colour in the bar above the table; ``None`` without one.
        bars: start, length and class of each piece of the line's own bar, in percent of the wall time.
    """

    label: str
    value: str
    share: str
    is_child: bool
    style: str | None
    bars: tuple[tuple[float, float, str], ...] = ()


@dataclass(frozen=True, slots=True)
class BreakdownSection:
    """The benchmark guide's table, and a bar that is as long as the wall time."""

    chart: Chart
    lines: tuple[BreakdownLine, ...]


def breakdown_section(run: Run) -> BreakdownSection:
    """The breakdown of the wall time."""
    rows = list(breakdown_rows(Breakdown.of(run)))
    parts = [
        Part(
            max(0.0, row.value),
            COMPONENTS[row.component],
            f"{row.label}: {duration(row.value)}, {share(row.percent)}",
            f"{row.label.removesuffix(' (total)')} {share(row.percent)}",
        )
        for row in rows
        if row.component in COMPONENTS and row.value is not None
    ]
    chart = row_chart(
        "Time by component: " + "; ".join(part.title for part in parts), [("", parts)], duration, stacked=True
    )
    return BreakdownSection(chart, tuple(_breakdown_lines(rows)))


def _breakdown_lines(rows: Sequence[Row]) -> Iterator[BreakdownLine]:
    """Each row with a bar that begins where that of the row before it ends; a total has those of its parts."""
    start = 0.0
    for index, row in enumerate(rows):
        style = COMPONENTS.get(row.component)
        parts = [] if row.component == "wall" else [row, *takewhile(lambda below: below.is_child, rows[index + 1 :])]
        bars, end = [], start
        for part in parts if style is None else [row]:
            if (colour := COMPONENTS.get(part.component)) is not None and part.percent is not None:
                length = max(0.0, part.percent)
                bars.append((round(end, 2), round(length, 2), colour))
                end += length
        if style is not None:
            start = end
        value = number(row.value) if row.component == "steps" else duration(row.value)
        drawn = tuple(bars) if row.percent is not None else ()
        yield BreakdownLine(row.label, value, share(row.percent), row.is_child, style, drawn)


def step_section(run: Run) -> Figure | None:
    """Time of every denoising step: the device's where it has a clock of its own, and the host's."""
    steps = run.named(semconv.DIT_STEP)
    if not steps:
        return None
    has_device_clock = any(step.attributes.get(semconv.CLOCK) != "host" for step in steps)
    # The figure of the table: the whole loop over its steps, including the time between two of them.
    average = Breakdown.of(run).step_average
    summary = f"{len(steps)} denoising steps" + ("" if average is None else f", {duration(average)} on average")
    return Figure(
        chart=column_chart(
            summary,
            [(_step_index(step), _step_parts(step, has_device_clock)) for step in steps],
            duration,
            reference=None if average is None else (average, f"average {duration(average)}"),
        ),
        legend=(("dit", "device"), ("host", "host, in the call")) if has_device_clock else (("dit", "host"),),
        table=Table(
            ("Step", "Timestep", "Guided", "Duration", "Clock", "Host duration"),
            tuple(
                (
                    _step_index(step),
                    number(step.attributes.get(semconv.DIT_STEP_TIMESTEP)),
                    "yes" if step.attributes.get(semconv.DIT_STEP_GUIDED) else "no",
                    duration(step.seconds),
                    str(step.attributes.get(semconv.CLOCK, ABSENT)),
                    duration(step.attributes.get(semconv.HOST_DURATION)),
                )
                for step in steps
            ),
        ),
    )


def _step_index(step: FinishedSpan) -> str:
    return str(step.attributes.get(semconv.DIT_STEP_INDEX, ABSENT))


def _step_parts(step: FinishedSpan, has_device_clock: bool) -> list[Part]:
    parts = [Part(step.seconds, "dit", f"step {_step_index(step)}: {duration(step.seconds)}")]
    host = step.attributes.get(semconv.HOST_DURATION)
    if has_device_clock and host is not None:
        parts.append(Part(host, "host", f"step {_step_index(step)}, host: {duration(host)}"))
    return parts
