"""VRAM of a run: the peak of every stage, and the use over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from acestep_otel import semconv
from acestep_otel.profiler.report.environment import Environment
from acestep_otel.profiler.report.html.charts import Part, row_chart
from acestep_otel.profiler.report.html.curve import Level, Reading, Series, curve_chart
from acestep_otel.profiler.report.html.figure import CurveFigure, Figure, Table
from acestep_otel.profiler.report.html.quantities import duration, size
from acestep_otel.profiler.report.spans import Run
from acestep_otel.profiler.report.statistics import MemoryPeak, MemorySample, memory_peaks, memory_samples

_GIB: Final = 2.0**30
_VISIBLE: Final = 1 / 3
"""Share of the card below which a curve has no line at the card's size, because the line would flatten it."""


@dataclass(frozen=True, slots=True)
class MemorySection:
    """VRAM of a run.

    Attributes:
        peaks: of every stage that recorded one.
        over_time: use over time; ``None`` for a trace without readings.
    """

    peaks: Figure
    over_time: CurveFigure | None


def memory_section(run: Run, card: int | None) -> MemorySection | None:
    """Peaks and curve; ``None`` off CUDA.

    Args:
        run: the measured run.
        card: memory of the card in bytes; ``None`` if it is not known.
    """
    peaks = memory_peaks(run)
    if not peaks:
        return None
    line = None if card is None else (float(card), f"the card has {size(card)}")
    highest = max(peak.reserved for peak in peaks)
    return MemorySection(_peaks(peaks, line), _over_time(run, line if line and highest >= _VISIBLE * line[0] else None))


def card_memory(run: Run, environment: Environment) -> int | None:
    """Bytes of the accelerator that a run was on; ``None`` off CUDA."""
    device, _, index = str(run.root.attributes.get(semconv.DEVICE, "")).partition(":")
    number = int(index) if index.isdecimal() else 0
    if device != "cuda" or number >= len(environment.accelerators):
        return None
    return environment.accelerators[number].memory_bytes


def _peaks(peaks: list[MemoryPeak], card: tuple[float, str] | None) -> Figure:
    highest = max(peaks, key=lambda peak: peak.reserved)
    return Figure(
        chart=row_chart(
            f"Peak VRAM by stage, the highest {size(highest.reserved)} reserved in {highest.label}",
            [(peak.label, _peak_parts(peak)) for peak in peaks],
            size,
            stacked=False,
            unit=_GIB,
            reference=card,
        ),
        legend=(("vram-allocated", "allocated"), ("vram-reserved", "reserved")),
        table=Table(
            ("Stage", "Allocated", "Reserved"),
            tuple((peak.label, size(peak.allocated), size(peak.reserved)) for peak in peaks),
        ),
    )


def _peak_parts(peak: MemoryPeak) -> list[Part]:
    return [
        Part(peak.reserved, "vram-reserved", f"{peak.label}, reserved: {size(peak.reserved)}"),
        Part(peak.allocated, "vram-allocated", f"{peak.label}, allocated: {size(peak.allocated)}"),
    ]


def _over_time(run: Run, card: tuple[float, str] | None) -> CurveFigure | None:
    samples = memory_samples(run)
    if not samples:
        return None
    highest = max(samples, key=lambda sample: sample.reserved)
    return CurveFigure(
        chart=curve_chart(
            f"VRAM over time in {len(samples)} readings, "
            f"the highest {size(highest.reserved)} reserved after {highest.stage} at {duration(highest.time)}",
            [
                Series("vram-reserved", [_reading(sample, sample.reserved, "reserved") for sample in samples]),
                Series("vram-allocated", [_reading(sample, sample.allocated, "allocated") for sample in samples]),
            ],
            _levels(run),
            duration=run.root.seconds,
            time_text=duration,
            value_text=size,
            unit=_GIB,
            reference=card,
        ),
        legend=(
            ("vram-allocated", "allocated"),
            ("vram-reserved", "reserved"),
            ("vram-peak", "highest allocated during a stage"),
        ),
        table=Table(
            ("After", "Time", "Allocated", "Reserved"),
            tuple(
                (sample.stage, duration(sample.time), size(sample.allocated), size(sample.reserved))
                for sample in samples
            ),
        ),
    )


def _reading(sample: MemorySample, count: int, kind: str) -> Reading:
    return Reading(sample.time, count, f"after {sample.stage}, {kind}: {size(count)}")


def _levels(run: Run) -> list[Level]:
    return [
        Level(
            (span.start_ns - run.root.start_ns) / 1e9,
            (span.end_ns - run.root.start_ns) / 1e9,
            peak := int(span.attributes[semconv.VRAM_PEAK_ALLOCATED]),
            "vram-peak",
            f"{semconv.stage_of(span.name)}, highest allocated: {size(peak)}",
        )
        for span in run.spans
        if semconv.VRAM_PEAK_ALLOCATED in span.attributes
    ]
