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
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from opentelemetry import metrics, trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import ProxyTracerProvider, TracerProvider

from acestep_otel.privacy import protect_callers
from acestep_otel.sdk.variables import require_variables
from acestep_otel.shutdown import SHUTDOWN_SECONDS, deliver_within

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricReader

logger = logging.getLogger("acestep_otel")


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
        self._deliveries = deliveries
        self._aborts = aborts

    def close(self) -> None:
        """End requests that are still running and deliver what is queued; takes less than five seconds.

        Providers that existed before ``configure`` are flushed by their owner. A second call does
        nothing.
        """
        from acestep_otel.instrumentor import AceStepInstrumentor

        AceStepInstrumentor().finish()
        deliveries, self._deliveries = self._deliveries, ()
        deliver_within(SHUTDOWN_SECONDS, deliveries, self._aborts, report=logger.warning)


def configure(*, service_name: str | None = None, metric_readers: Sequence[MetricReader] = ()) -> ServiceTelemetry:
    """Set up the SDK from the environment, register it globally, and trace the engine with it.

    Args:
        service_name: where neither ``OTEL_SERVICE_NAME`` nor ``OTEL_RESOURCE_ATTRIBUTES`` names the service.
        metric_readers: additional readers, such as ``PrometheusMetricReader``. They are shut down if the process
            already has providers, which have their own readers.

    Empty ``OTEL_*`` variables are treated as unset, as the specification requires.

    Raises:
        SetupError: a variable has an invalid value; nothing was set up.
    """
    provider = trace.get_tracer_provider()
    is_there = not isinstance(provider, ProxyTracerProvider)
    if not is_there:
        require_variables()
    # The SDK and the propagators read the environment while they are imported.
    from acestep_otel.instrumentor import AceStepInstrumentor

    if is_there:
        for reader in metric_readers:
            reader.shutdown()
        if not AceStepInstrumentor().is_instrumented_by_opentelemetry:
            AceStepInstrumentor().instrument()
        return ServiceTelemetry(provider, metrics.get_meter_provider())
    from acestep_otel.sdk.providers import ServiceProviders

    made = ServiceProviders(service_name, metric_readers)
    made.make_global()
    protect_callers()
    AceStepInstrumentor().instrument()
    return ServiceTelemetry(made.tracer_provider, made.meter_provider, made.deliveries, made.aborts)
