"""A run's figures as metrics: those of its table."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from acestep_otel import semconv
from acestep_otel.profiler.cli import main
from acestep_otel.profiler.report.breakdown import Breakdown, breakdown_rows
from acestep_otel.profiler.report.statistics import token_statistics
from acestep_otel.profiler.run.measurement import record_figures
from tests.profiler.report.recorded import guide_spans, run_of

REQUEST = {semconv.STAGE: "generate_music"}


def recorded(run) -> dict[str, list]:
    reader = InMemoryMetricReader()
    record_figures(run, SimpleNamespace(meter_provider=MeterProvider([reader])))
    return {
        metric.name: metric.data.data_points
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def test_every_row_of_the_breakdown_is_a_gauge() -> None:
    run = run_of(guide_spans())
    metrics = recorded(run)
    rows = {row.component: row.value for row in breakdown_rows(Breakdown.of(run))}
    steps = rows.pop("steps")
    points = metrics[semconv.PROFILE_DURATION.name]
    assert {point.attributes[semconv.PROFILE_ROW]: point.value for point in points} == rows
    assert all(REQUEST.items() <= dict(point.attributes).items() for point in points)
    assert [point.value for point in metrics[semconv.PROFILE_STEPS.name]] == [steps]


def test_the_pace_of_a_phase_is_one_over_its_tokens_per_second() -> None:
    run = run_of(guide_spans())
    rates = {phase.phase: phase.output_tokens_per_second for phase in token_statistics(run)}
    points = recorded(run)[semconv.PROFILE_TOKEN_DURATION.name]
    assert set(rates) == {"lm.cot", "lm.codes"}
    assert {point.attributes[semconv.STAGE]: 1 / point.value for point in points} == pytest.approx(rates)


def test_what_no_span_states_has_no_gauge() -> None:
    """Guidance that was not calibrated, a grammar that was not timed, steps that were not counted."""
    unstated = (semconv.LM_CFG_DURATION, semconv.LM_CONSTRAINED_DECODING_DURATION, semconv.DIT_STEPS)
    spans = [
        replace(span, attributes={name: value for name, value in span.attributes.items() if name not in unstated})
        for span in guide_spans()
        if span.name != semconv.DIT_STEP
    ]
    points = recorded(run_of(spans))
    rows = {point.attributes[semconv.PROFILE_ROW] for point in points[semconv.PROFILE_DURATION.name]}
    assert not rows & {"guidance", "constrained_decoding", "step_average"}
    assert {"token_generation", "planner", "diffusion"} <= rows
    assert semconv.PROFILE_STEPS.name not in points


def test_a_run_that_failed_records_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last run that ended well stays on the board."""
    taken: list[object] = []
    monkeypatch.setattr("acestep_otel.profiler.run.measurement.record_figures", lambda run, _: taken.append(run))
    monkeypatch.setattr("acestep.renderer.renderer.Renderer.predict_velocity", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["--tiny", "--duration", "10", "--inference-steps", "2", "--no-warmup", "--no-progress"])
    assert taken == []
