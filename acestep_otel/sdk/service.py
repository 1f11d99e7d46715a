"""An OpenTelemetry SDK for a service that has none, in one call.

Usage
-----
::

    telemetry = acestep_otel.configure(service_name="songs")
    ...
    telemetry.close()

The standard variables decide what happens to spans and metrics. Nothing is sent without an endpoint
(``OTEL_EXPORTER_OTLP_ENDPOINT``), and every request is traced without ``OTEL_TRACES_SAMPLER_ARG``. The propagators are
those of ``OTEL_PROPAGATORS`` plus the header ``X-Force-Trace``. Under ``opentelemetry-instrument``, or in a program
that has set up providers itself, those are used and nothing is added.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from opentelemetry import metrics, propagate, trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk.environment_variables import (
    OTEL_BSP_SCHEDULE_DELAY,
    OTEL_SDK_DISABLED,
    OTEL_TRACES_SAMPLER,
    OTEL_TRACES_SAMPLER_ARG,
)
from opentelemetry.sdk.metrics import MeterProvider as SdkMeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME
from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_OFF,
    DEFAULT_ON,
    ParentBasedTraceIdRatio,
    Sampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import ProxyTracerProvider, TracerProvider

from acestep_otel.errors import SetupError
from acestep_otel.forced_sampling.propagator import ForcePropagator
from acestep_otel.forced_sampling.sampler import forcible_traceidratio, share_of
from acestep_otel.instrumentor import AceStepInstrumentor
from acestep_otel.sdk.identity import environment, resource_of
from acestep_otel.sdk.otlp import metric_exporter, otlp_target, span_exporter
from acestep_otel.shutdown import SHUTDOWN_SECONDS, deliver_within

logger = logging.getLogger("acestep_otel")

_SCHEDULE_DELAY_MILLISECONDS: Final = 1000
"""Of the batches of spans where ``OTEL_BSP_SCHEDULE_DELAY`` is not set: what a killed process loses."""
_INTERNAL_METRICS_VARIABLE: Final = "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED"
FORCIBLE: Final = "acestep_forcible_traceidratio"
"""The sampler of a service that names none."""
_SAMPLERS: Final[Mapping[str, Callable[[str | None], Sampler]]] = {
    "always_on": lambda _: ALWAYS_ON,
    "always_off": lambda _: ALWAYS_OFF,
    "parentbased_always_on": lambda _: DEFAULT_ON,
    "parentbased_always_off": lambda _: DEFAULT_OFF,
    "traceidratio": lambda share: TraceIdRatioBased(share_of(share)),
    "parentbased_traceidratio": lambda share: ParentBasedTraceIdRatio(share_of(share)),
    FORCIBLE: forcible_traceidratio,
}


class ServiceTelemetry:
    """The providers of a service, and their end.

    Attributes:
        tracer_provider: where spans go.
        meter_provider: where metrics go.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider,
        meter_provider: MeterProvider,
        deliveries: Sequence[Callable[[float], object]] = (),
        aborts: Sequence[Callable[[], object]] = (),
    ) -> None:
        self.tracer_provider = tracer_provider
        self.meter_provider = meter_provider
        self._deliveries = list(deliveries)
        self._aborts = aborts

    def close(self) -> None:
        """End requests that are still running and deliver what is queued; takes less than five seconds.

        Providers that ``configure`` has found rather than made are flushed by whoever made them. A second call does
        nothing.
        """
        AceStepInstrumentor().finish()
        deliveries, self._deliveries = self._deliveries, []
        deliver_within(SHUTDOWN_SECONDS, deliveries, self._aborts, report=logger.warning)


def configure(*, service_name: str | None = None, metric_readers: Sequence[MetricReader] = ()) -> ServiceTelemetry:
    """Set up the SDK from the environment, make it the process's own, and trace the engine with it.

    Args:
        service_name: where neither ``OTEL_SERVICE_NAME`` nor ``OTEL_RESOURCE_ATTRIBUTES`` names the service.
        metric_readers: of the service's own, such as ``PrometheusMetricReader``; metrics go there as well.

    Raises:
        SetupError: a variable has a value that means nothing; nothing was set up.
    """
    provider = trace.get_tracer_provider()
    if not isinstance(provider, ProxyTracerProvider):
        if not AceStepInstrumentor().is_instrumented_by_opentelemetry:
            AceStepInstrumentor().instrument()
        return ServiceTelemetry(provider, metrics.get_meter_provider())
    telemetry = _set_up(service_name, metric_readers)
    trace.set_tracer_provider(telemetry.tracer_provider)
    metrics.set_meter_provider(telemetry.meter_provider)
    propagate.set_global_textmap(_with_force_header(propagate.get_global_textmap()))
    AceStepInstrumentor().instrument()
    return telemetry


def _set_up(service_name: str | None, metric_readers: Sequence[MetricReader]) -> ServiceTelemetry:
    # Everything that can be refused comes first: a wrong setting leaves no thread behind.
    resource = resource_of({} if service_name is None else {SERVICE_NAME: service_name})
    sampler = _sampler()
    disabled = os.environ.get(OTEL_SDK_DISABLED, "").strip().lower() == "true"
    traces = None if disabled else otlp_target("traces")
    sent = None if disabled else otlp_target("metrics", beside=frozenset({"prometheus"} if metric_readers else ()))
    spans_to = None if traces is None else span_exporter(traces)
    metrics_to = None if sent is None else metric_exporter(sent)
    try:
        readers = [*metric_readers, *([] if metrics_to is None else [PeriodicExportingMetricReader(metrics_to)])]
        meter_provider = SdkMeterProvider(readers, resource=resource, shutdown_on_exit=False)
        # Spans that a full queue drops are counted by the SDK itself where this says so while it is set up.
        counted = os.environ.get(_INTERNAL_METRICS_VARIABLE) or "true"
        with environment({_INTERNAL_METRICS_VARIABLE: counted}):
            tracer_provider = SdkTracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
            if spans_to is not None:
                delay = None if os.environ.get(OTEL_BSP_SCHEDULE_DELAY) else _SCHEDULE_DELAY_MILLISECONDS
                tracer_provider.add_span_processor(
                    BatchSpanProcessor(spans_to, schedule_delay_millis=delay, meter_provider=meter_provider)
                )
    except ValueError as error:
        raise SetupError(f"an OTEL_* variable of the SDK has a value that it cannot use: {error}") from error
    return ServiceTelemetry(
        tracer_provider,
        meter_provider,
        [
            lambda _: tracer_provider.shutdown(),
            lambda seconds: meter_provider.shutdown(timeout_millis=seconds * 1000),
        ],
        [exporter.shutdown for exporter in (spans_to, metrics_to) if exporter is not None],
    )


def _sampler() -> Sampler:
    name = os.environ.get(OTEL_TRACES_SAMPLER, "").strip().lower() or FORCIBLE
    if name not in _SAMPLERS:
        raise SetupError(f"{OTEL_TRACES_SAMPLER}={name!r} is not supported: choose {', '.join(_SAMPLERS)}")
    try:
        return _SAMPLERS[name](os.environ.get(OTEL_TRACES_SAMPLER_ARG))
    except ValueError as error:
        raise SetupError(str(error)) from error


def _with_force_header(configured: Any) -> CompositePropagator:
    """The configured propagators, and the one that reads ``X-Force-Trace`` unless it is among them."""
    forced = ForcePropagator()
    return configured if forced.fields <= configured.fields else CompositePropagator([configured, forced])
