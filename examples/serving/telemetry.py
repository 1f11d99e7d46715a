"""The service's telemetry: traces and metrics of engine, queue and HTTP interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.exporter.prometheus import PrometheusMetricReader

import acestep_otel

if TYPE_CHECKING:
    from fastapi import FastAPI

UNTRACED = "healthz,metrics,events"
"""Paths that are asked all the time, or for as long as a song takes, and say nothing about it."""


def set_up() -> acestep_otel.ServiceTelemetry:
    """Trace the engine, with the SDK of ``opentelemetry-instrument`` where there is one.

    Raises:
        acestep_otel.SetupError: an ``OTEL_*`` variable has a value that cannot be used.
    """
    return acestep_otel.configure(service_name="acestep-serving", metric_readers=[PrometheusMetricReader()])


def instrument(app: FastAPI, telemetry: acestep_otel.ServiceTelemetry) -> None:
    """Trace the HTTP interface as well, unless ``opentelemetry-instrument`` does so."""
    # Imported once the variables are known to be right: propagators read theirs while they are imported.
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    if FastAPIInstrumentor().is_instrumented_by_opentelemetry:
        return
    FastAPIInstrumentor.instrument_app(
        app,
        tracer_provider=telemetry.tracer_provider,
        meter_provider=telemetry.meter_provider,
        excluded_urls=UNTRACED,
        exclude_spans=["receive", "send"],
    )
