"""The figures of a measured run as metrics, from the same reduction as its table."""

from __future__ import annotations

from acestep_otel import __version__, semconv
from acestep_otel.profiler.report.breakdown import Breakdown
from acestep_otel.profiler.report.rows import breakdown_rows
from acestep_otel.profiler.report.spans import Run
from acestep_otel.profiler.report.statistics import token_statistics
from acestep_otel.profiler.telemetry.providers import Telemetry
from acestep_otel.recording.instruments import Instruments


def record_figures(run: Run, telemetry: Telemetry) -> None:
    """Record the breakdown and the pace of each planner phase.

    Args:
        run: the measured run; the model it names is the metrics' own.
        telemetry: whose meter takes them.
    """
    instruments = Instruments(telemetry.meter_provider.get_meter("acestep_otel", __version__))
    model = {semconv.REQUEST_MODEL: str(run.root.attributes.get(semconv.REQUEST_MODEL, ""))}
    root = {**model, semconv.STAGE: semconv.stage_of(run.root.name)}
    for row in breakdown_rows(Breakdown.of(run)):
        if row.value is None:
            continue
        if row.component == "steps":
            instruments.record(semconv.PROFILE_STEPS, row.value, root)
        else:
            instruments.record(semconv.PROFILE_DURATION, row.value, {**root, semconv.PROFILE_ROW: row.component})
    for phase in token_statistics(run):
        if rate := phase.output_tokens_per_second:
            instruments.record(semconv.PROFILE_TOKEN_DURATION, 1 / rate, {**model, semconv.STAGE: phase.phase})
