"""The service's telemetry: traces and metrics of engine, queue and HTTP interface."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from prometheus_client.metrics_core import Metric

import acestep_otel

if TYPE_CHECKING:
    from fastapi import FastAPI

UNTRACED = "healthz,metrics,events"
"""Paths that are requested all the time, or for the duration of a song, and whose spans give no information."""


def set_up() -> acestep_otel.ServiceTelemetry:
    """Trace the engine, with the SDK of ``opentelemetry-instrument`` if it is used.

    Raises:
        acestep_otel.SetupError: an ``OTEL_*`` variable has a value that cannot be used.
    """
    return acestep_otel.configure(service_name="acestep-serving", metric_readers=[PrometheusMetricReader()])


class Together:
    """Metrics of several processes as one registry: those of a worker have its card as a label."""

    def __init__(self, own: Iterable[Metric], workers: Iterable[tuple[str | None, Iterable[Metric]]]) -> None:
        """Combine them.

        Args:
            own: this process's.
            workers: label and metrics of each worker.
        """
        self._families: dict[str, Metric] = {}
        self._add(own, {})
        for label, families in workers:
            self._add(families, {} if label is None else {"acestep_worker": label})

    def collect(self) -> Iterable[Metric]:
        """Each family once."""
        return self._families.values()

    def _add(self, families: Iterable[Metric], labels: dict[str, str]) -> None:
        for family in families:
            known = self._families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type, family.unit)
            )
            known.samples += [sample._replace(labels={**sample.labels, **labels}) for sample in family.samples]


def instrument(app: FastAPI, telemetry: acestep_otel.ServiceTelemetry) -> None:
    """Trace the HTTP interface as well, unless ``opentelemetry-instrument`` does so."""
    # Imported once the variables have been checked: propagators read theirs while they are imported.
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
