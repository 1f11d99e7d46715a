"""The service's OpenTelemetry SDK, unless ``opentelemetry-instrument`` has brought one."""

from __future__ import annotations

import logging
import os

from fastapi import FastAPI
from opentelemetry import metrics, propagate, trace
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from acestep_otel.forced_sampling.propagator import ForcePropagator
from acestep_otel.forced_sampling.sampler import forcible_traceidratio
from acestep_otel.instrumentor import AceStepInstrumentor
from acestep_otel.sdk.otlp import metric_exporter, otlp_target, span_exporter
from acestep_otel.shutdown import SHUTDOWN_SECONDS, deliver_within

logger = logging.getLogger("examples.serving")
UNTRACED = "healthz,metrics,events"
"""Paths that are asked all the time, or for as long as a song takes, and say nothing about it."""


def set_up() -> Telemetry | None:
    """Trace the engine; ``None`` when an agent does so already."""
    return None if isinstance(trace.get_tracer_provider(), TracerProvider) else Telemetry()


class Telemetry:
    """Providers configured by the standard ``OTEL_*`` variables, and their end."""

    def __init__(self) -> None:
        # Spans that a full queue drops are counted by the SDK itself, once it is asked to.
        os.environ.setdefault("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "true")
        # A second is the most that a killed process loses.
        os.environ.setdefault("OTEL_BSP_SCHEDULE_DELAY", "1000")
        resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "acestep-serving")})
        traced, measured = otlp_target("traces"), otlp_target("metrics")
        spans_to = None if traced is None else span_exporter(traced)
        metrics_to = None if measured is None else metric_exporter(measured)
        self._exporters = [exporter for exporter in (spans_to, metrics_to) if exporter is not None]
        readers: list[MetricReader] = [PrometheusMetricReader()]
        if metrics_to is not None:
            readers.append(PeriodicExportingMetricReader(metrics_to))
        self.meter_provider = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
        self.tracer_provider = TracerProvider(
            sampler=forcible_traceidratio(os.environ.get("OTEL_TRACES_SAMPLER_ARG")),
            resource=resource,
            shutdown_on_exit=False,
        )
        if spans_to is not None:
            processor = BatchSpanProcessor(spans_to, meter_provider=self.meter_provider)
            self.tracer_provider.add_span_processor(processor)
        trace.set_tracer_provider(self.tracer_provider)
        metrics.set_meter_provider(self.meter_provider)
        propagate.set_global_textmap(CompositePropagator([propagate.get_global_textmap(), ForcePropagator()]))
        AceStepInstrumentor().instrument()

    def instrument(self, app: FastAPI) -> None:
        """Trace the HTTP interface as well."""
        FastAPIInstrumentor.instrument_app(app, excluded_urls=UNTRACED, exclude_spans=["receive", "send"])

    def close(self) -> None:
        """Deliver what is queued, within ``SHUTDOWN_SECONDS``."""
        AceStepInstrumentor().finish()
        deliver_within(
            SHUTDOWN_SECONDS,
            [
                lambda _: self.tracer_provider.shutdown(),
                lambda seconds: self.meter_provider.shutdown(timeout_millis=seconds * 1000),
            ],
            [exporter.shutdown for exporter in self._exporters],
            report=logger.warning,
        )
