"""The roofline of one run as a drawing: operations per byte against operations per second, both logarithmic."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from acestep_otel import semconv
from acestep_otel.profiler.report.html.charts import AXIS_HEIGHT, RIGHT, Label
from acestep_otel.profiler.report.html.figure import Table, colour_of
from acestep_otel.profiler.report.html.quantities import ABSENT, Tick, duration, share
from acestep_otel.profiler.report.spans import Run
from acestep_otel.profiler.report.stage_work import RunWork, StageWork
from acestep_otel.profiler.report.work_table import ceilings

_LEFT: Final = 96
_TOP: Final = 16
_HEIGHT: Final = 280
_WITHIN: Final = frozenset({semconv.LM, semconv.DIT_STEP, semconv.VAE_TILE})
"""Spans that are sums or parts of others, and would overlap with them; only the table has them."""
_MEANINGS: Final = {
    "compute": "compute-bound: nearer to the device's rate of operations",
    "memory": "memory-bound: nearer to its bandwidth",
    "launch": "launch-bound: the device waited for the host",
}


@dataclass(frozen=True, slots=True)
class Dot:
    """A stage, in drawing units; ``anchor`` is the side of its label."""

    x: float
    y: float
    style: str
    title: str
    name: str
    anchor: str


@dataclass(frozen=True, slots=True)
class RooflineChart:
    """The data that the template renders.

    Attributes:
        summary: the chart in one sentence.
        height: drawing units.
        left: start of the plot.
        bottom: end of the plot.
        across: ticks of operations per byte.
        upright: ticks of operations per second.
        roof: corners of the two ceilings, as points of a polyline; empty without peaks.
        ridge: label at the corner of the roof.
        dots: the stages.
    """

    summary: str
    height: float
    left: float
    bottom: float
    across: tuple[Tick, ...]
    upright: tuple[Tick, ...]
    roof: str
    ridge: Label | None
    dots: tuple[Dot, ...]


@dataclass(frozen=True, slots=True)
class RooflineSection:
    """The drawing, its description, and its figures."""

    chart: RooflineChart
    ceilings: str
    verdicts: tuple[tuple[str, str], ...]
    table: Table


@dataclass(frozen=True, slots=True)
class _Scale:
    """A logarithmic axis from one power of ten to another."""

    first: int
    last: int
    start: float
    length: float

    @classmethod
    def covering(cls, values: Iterable[float], start: float, length: float) -> _Scale:
        powers = [math.log10(value) for value in values]
        first, last = math.floor(min(powers)), math.ceil(max(powers))
        return cls(first, max(last, first + 1), start, length)

    def at(self, value: float) -> float:
        return round(self.start + self.length * (math.log10(value) - self.first) / (self.last - self.first), 2)

    @property
    def ticks(self) -> tuple[Tick, ...]:
        return tuple(Tick(self.at(10.0**power), _rounded(10.0**power)) for power in range(self.first, self.last + 1))


def _rounded(value: float) -> str:
    for unit, name in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g} {name}"
    return f"{value:g}"


def roofline_section(run: Run) -> RooflineSection | None:
    """The work of the run's stages; ``None`` if no work is known."""
    work = RunWork.of(run)
    stages = [(name, stage) for name, stage in work.stages.items() if stage.bytes > 0 and stage.operations > 0]
    if not stages:
        return None
    drawn = [(name, stage) for name, stage in stages if name not in _WITHIN] or stages
    return RooflineSection(
        chart=_chart(work, drawn),
        ceilings=ceilings(work),
        verdicts=tuple((stage.stage, _verdict(stage)) for _, stage in drawn if stage.bound in _MEANINGS),
        table=Table(
            ("Stage", "Spans", "Time", "TFLOP", "GB", "FLOP/B", "TFLOP/s", "TB/s", "Share of the roofline", "Bound"),
            tuple(_row(stage) for _, stage in stages),
        ),
    )


def _verdict(stage: StageWork) -> str:
    reached = share(None if stage.share is None else 100 * stage.share)
    return f"{reached} of the roofline, {_MEANINGS[str(stage.bound)]}"


def _row(stage: StageWork) -> tuple[str, ...]:
    figures = (
        stage.operations / 1e12,
        stage.bytes / 1e9,
        stage.intensity,
        stage.operation_rate / 1e12,
        stage.byte_rate / 1e12,
    )
    return (
        stage.stage,
        str(stage.spans),
        duration(stage.seconds),
        *(f"{figure:.3g}" for figure in figures),
        ABSENT if stage.share is None else share(100 * stage.share),
        stage.bound or ABSENT,
    )


def _chart(work: RunWork, stages: list[tuple[str, StageWork]]) -> RooflineChart:
    intensities = [stage.intensity for _, stage in stages]
    rates = [stage.operation_rate for _, stage in stages]
    ridge = None if work.rate is None or work.bandwidth is None else work.rate / work.bandwidth
    if work.rate is not None and ridge is not None:
        intensities.append(ridge)
        rates.append(work.rate)
    bottom = _TOP + _HEIGHT
    across = _Scale.covering(intensities, _LEFT, RIGHT - _LEFT)
    upright = _Scale.covering(rates, bottom, -_HEIGHT)
    roof, corner = "", None
    if work.rate is not None and work.bandwidth is not None and ridge is not None:
        # From the point where the slope crosses the lower edge, or from the left edge.
        begin = max(10.0**across.first, 10.0**upright.first / work.bandwidth)
        corners = (
            (begin, begin * work.bandwidth),
            (ridge, work.rate),
            (10.0**across.last, work.rate),
        )
        roof = " ".join(f"{across.at(x)},{upright.at(y)}" for x, y in corners)
        corner = Label(across.at(ridge), upright.at(work.rate) - 10, f"{ridge:.0f} FLOP/B")
    words = "; ".join(f"{stage.stage} {share(100 * stage.share)}" for _, stage in stages if stage.share is not None)
    return RooflineChart(
        summary=f"Share of the roofline by stage: {words or 'the peaks of the device are not known'}",
        height=bottom + AXIS_HEIGHT * 2,
        left=_LEFT,
        bottom=bottom,
        across=across.ticks,
        upright=upright.ticks,
        roof=roof,
        ridge=corner,
        dots=tuple(_dot(name, stage, across, upright) for name, stage in stages),
    )


def _dot(name: str, stage: StageWork, across: _Scale, upright: _Scale) -> Dot:
    x, y = across.at(stage.intensity), upright.at(stage.operation_rate)
    share_words = "" if stage.share is None else f", {share(100 * stage.share)} of the roofline, {stage.bound}-bound"
    title = (
        f"{stage.stage}: {stage.intensity:.3g} FLOP/B, {stage.operation_rate / 1e12:.3g} TFLOP/s, "
        f"{stage.byte_rate / 1e12:.3g} TB/s{share_words}"
    )
    return Dot(x, y, colour_of(name), title, stage.stage, "end" if x > RIGHT - 160 else "start")
