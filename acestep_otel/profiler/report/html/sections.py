"""The sections of one run, from its spans to text and drawings; a section that has nothing to say is ``None``."""

from __future__ import annotations

from dataclasses import dataclass

from acestep_otel import semconv
from acestep_otel.profiler.report.breakdown import Breakdown, Row, breakdown_rows
from acestep_otel.profiler.report.html.charts import Chart, Part, column_chart, row_chart
from acestep_otel.profiler.report.html.figure import COMPONENTS, Figure, Table
from acestep_otel.profiler.report.html.quantities import ABSENT, duration, number, share
from acestep_otel.profiler.report.spans import FinishedSpan, Run


@dataclass(frozen=True, slots=True)
class BreakdownLine:
    """A line of the breakdown's table; ``style`` is the class of its colour in the bar, ``None`` without one."""

    label: str
    value: str
    share: str
    is_child: bool
    style: str | None


@dataclass(frozen=True, slots=True)
class BreakdownSection:
    """The benchmark guide's table, and a bar that is as long as the wall time."""

    chart: Chart
    lines: tuple[BreakdownLine, ...]


def breakdown_section(run: Run) -> BreakdownSection:
    """Where the wall time went."""
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
    return BreakdownSection(chart, tuple(map(_breakdown_line, rows)))


def _breakdown_line(row: Row) -> BreakdownLine:
    value = number(row.value) if row.component == "steps" else duration(row.value)
    return BreakdownLine(row.label, value, share(row.percent), row.is_child, COMPONENTS.get(row.component))


def step_section(run: Run) -> Figure | None:
    """Time of every denoising step: the device's where it has a clock of its own, and the host's."""
    steps = run.named(semconv.DIT_STEP)
    if not steps:
        return None
    has_device_clock = any(step.attributes.get(semconv.CLOCK) != "host" for step in steps)
    # The figure of the table: the whole loop over its steps, what happens between two of them included.
    average = Breakdown.of(run).step_average or 0.0
    return Figure(
        chart=column_chart(
            f"{len(steps)} denoising steps, {duration(average)} on average",
            [(_step_index(step), _step_parts(step, has_device_clock)) for step in steps],
            duration,
            reference=(average, f"average {duration(average)}"),
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
