"""The SDK's providers for a service, created from the checked environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import metrics, propagate, trace
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk.environment_variables import OTEL_SDK_DISABLED, OTEL_TRACES_SAMPLER, OTEL_TRACES_SAMPLER_ARG
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import Sampler

from acestep_otel.errors import SetupError
from acestep_otel.forced_sampling.profiling import ProfilePropagator
from acestep_otel.forced_sampling.propagator import ForcePropagator
from acestep_otel.forced_sampling.sampler import forcible_traceidratio, share_of
from acestep_otel.sdk.forks import ExportsBeforeForks
from acestep_otel.sdk.otlp import logs_target, metric_exporter, otlp_target, span_exporter
from acestep_otel.sdk.pipeline import batch_span_processor, exemplar_filter, periodic_metric_reader
from acestep_otel.sdk.resource import resource
from acestep_otel.sdk.variables import is_true, overridden, variable

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

    from acestep_otel.sdk.logs import ServiceLogs
    from acestep_otel.sdk.otlp import OtlpTarget

_SCHEDULE_DELAY_MILLISECONDS: Final = 1000
"""Milliseconds between batches if ``OTEL_BSP_SCHEDULE_DELAY`` is not set: a killed process loses these spans."""
_INTERNAL_METRICS_VARIABLE: Final = "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED"
FORCIBLE: Final = "acestep_forcible_traceidratio"
"""The sampler of a service that names none."""
_BY_SHARE: Final = ("traceidratio", "parentbased_traceidratio")
"""Samplers of the SDK that take a number."""


class ServiceProviders:
    """Both providers of a service and the exporters behind them.

    Attributes:
        tracer_provider: where spans go.
        meter_provider: where metrics go.
        deliveries: shutdowns of the providers, which take their time limit in seconds.
        aborts: shutdowns of the exporters, which end a delivery that hangs.
    """

    def __init__(self, service_name: str | None, metric_readers: Sequence[MetricReader]) -> None:
        """Create the providers.

        Raises:
            SetupError: a variable cannot be used; no thread was started.
        """
        made_by = resource(service_name)
        sampler = _sampler()
        disabled = is_true(OTEL_SDK_DISABLED)
        traces = None if disabled else otlp_target("traces")
        sent = None if disabled else otlp_target("metrics", others=("prometheus",) if metric_readers else ())
        records_to = None if disabled else logs_target()
        spans_to = None if traces is None else span_exporter(traces)
        metrics_to = None if sent is None else metric_exporter(sent)
        readers = [*metric_readers, *([] if metrics_to is None else [periodic_metric_reader(metrics_to)])]
        self.meter_provider = MeterProvider(
            readers, resource=made_by, exemplar_filter=exemplar_filter(), shutdown_on_exit=False
        )
        # The SDK itself counts the spans that a full queue drops, if this is set while it is set up.
        with overridden({_INTERNAL_METRICS_VARIABLE: variable(_INTERNAL_METRICS_VARIABLE) or "true"}):
            self.tracer_provider = TracerProvider(sampler=sampler, resource=made_by, shutdown_on_exit=False)
            if spans_to is not None:
                self.tracer_provider.add_span_processor(
                    batch_span_processor(
                        spans_to, schedule_delay=_SCHEDULE_DELAY_MILLISECONDS, meter_provider=self.meter_provider
                    )
                )
        self._logs = logs = None if records_to is None else _service_logs(records_to, made_by)
        self._forks = ExportsBeforeForks(
            [self.tracer_provider, self.meter_provider, *([] if logs is None else [logs.provider])]
        )
        self.deliveries: tuple[Callable[[float], object], ...] = (
            lambda _: self.tracer_provider.shutdown(),
            lambda seconds: self.meter_provider.shutdown(timeout_millis=seconds * 1000),
            *(() if logs is None else (lambda _: logs.shutdown(),)),
        )
        self.aborts = tuple(
            exporter.shutdown
            for exporter in (spans_to, metrics_to, None if logs is None else logs.exporter)
            if exporter is not None
        )

    def make_global(self) -> None:
        """Register them globally, and read ``X-Force-Trace`` and ``X-Profile`` from requests."""
        trace.set_tracer_provider(self.tracer_provider)
        metrics.set_meter_provider(self.meter_provider)
        if self._logs is not None:
            self._logs.start()
        propagate.set_global_textmap(_with_own_headers(propagate.get_global_textmap()))


def _service_logs(target: OtlpTarget, made_by: Resource) -> ServiceLogs:
    # The SDK's logs read the resource from the environment while they are imported.
    from acestep_otel.sdk.logs import ServiceLogs

    return ServiceLogs(target, made_by)


def _sampler() -> Sampler:
    name = (variable(OTEL_TRACES_SAMPLER) or "").lower()
    argument = variable(OTEL_TRACES_SAMPLER_ARG)
    try:
        if name in ("", FORCIBLE):
            return forcible_traceidratio(argument)
        factory = next(iter(entry_points(group="opentelemetry_traces_sampler", name=name))).load()
        sampler = factory(share_of(argument) if name in _BY_SHARE else argument)
    except Exception as error:
        raise SetupError(f"{OTEL_TRACES_SAMPLER}={name!r} cannot be set up: {error}") from error
    assert isinstance(sampler, Sampler), f"{name} is not a sampler"
    return sampler


def _with_own_headers(configured: Any) -> CompositePropagator:
    """The configured propagators, and those of ``X-Force-Trace`` and ``X-Profile`` unless they are among them."""
    own = [each for each in (ForcePropagator(), ProfilePropagator()) if not each.fields <= configured.fields]
    return CompositePropagator([configured, *own]) if own else configured
