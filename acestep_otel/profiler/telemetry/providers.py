"""The OpenTelemetry SDK, set up for the command line, and the tracing of one mode's run with it.

The tracing layer needs only the API; an application brings its own providers. The command line is an application:
it keeps every finished span in memory for its report, sends telemetry to an OTLP endpoint when one is configured,
serves metrics to Prometheus and writes a trace file on request. Without configuration there is no exporter, no thread
and no log line.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.resources import SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from acestep_otel import __version__, semconv
from acestep_otel.errors import SetupError
from acestep_otel.instrumentor import AceStepInstrumentor
from acestep_otel.profiler.options import Options
from acestep_otel.profiler.report.spans import FinishedSpan
from acestep_otel.profiler.telemetry.delivery import DeliveryLedger, EngineLog, ExportedSpans, SdkLog
from acestep_otel.profiler.telemetry.trace_file import TraceFile
from acestep_otel.profiler.terminal import warn
from acestep_otel.sdk.answers import Signal
from acestep_otel.sdk.otlp import (
    OtlpTarget,
    answers_of,
    disabled,
    histogram_caveat,
    metric_exporter,
    otlp_target,
    span_exporter,
)
from acestep_otel.sdk.pipeline import UNLIMITED, batch_span_processor, exemplar_filter, periodic_metric_reader
from acestep_otel.sdk.resource import resource
from acestep_otel.settings import DETAIL_VARIABLE, Detail, Settings
from acestep_otel.shutdown import SHUTDOWN_SECONDS, deliver_within

if TYPE_CHECKING:
    from acestep_otel.profiler.telemetry.prometheus import PrometheusEndpoint


class SpanCollector(SpanProcessor):
    """Keeps finished spans for the report, and ends those that are open at shutdown."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[int, Span] = {}
        self._finished: list[ReadableSpan] = []

    # The SDK passes the context by keyword, so the name stays though it is not needed here.
    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002
        """Remember an open span."""
        with self._lock:
            self._open[id(span)] = span

    def on_end(self, span: ReadableSpan) -> None:
        """Keep a finished span."""
        with self._lock:
            self._finished.append(span)

    def end_open_spans(self) -> None:
        """End what is still running and mark it with ``acestep.truncated``, innermost first."""
        with self._lock:
            still_open = [span for span in reversed(self._open.values()) if span.is_recording()]
            self._open.clear()
        for span in still_open:
            span.set_attribute(semconv.TRUNCATED, True)
            span.end()

    @property
    def readable_spans(self) -> list[ReadableSpan]:
        """The spans that have finished, as objects of the SDK."""
        with self._lock:
            return list(self._finished)

    @property
    def finished_spans(self) -> list[FinishedSpan]:
        """The spans that have finished, in the form of the report."""
        return self.finished_since(0)

    def finished_since(self, position: int) -> list[FinishedSpan]:
        """The spans that finished after the first ``position`` spans, in the form of the report."""
        return [FinishedSpan.from_readable_span(span) for span in self.readable_spans[position:]]


class Telemetry:
    """Providers of one process, and their end.

    Used as a context manager: leaving it ends open spans, delivers what is queued, and takes at most
    ``SHUTDOWN_SECONDS``.

    Attributes:
        disabled: whether ``OTEL_SDK_DISABLED`` is set: there are no spans then, and nothing to report.
        collector: every span that finished in this process.
        tracer_provider: to instrument with.
        meter_provider: to instrument with.
    """

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        protocol: str | None = None,
        trace_output: Path | None = None,
        prometheus_port: int | None = None,
    ) -> None:
        """Set up the SDK.

        Args:
            endpoint: OTLP endpoint; ``None`` leaves the decision to the environment.
            protocol: ``grpc`` or ``http/protobuf``; ``None`` leaves the decision to the environment.
            trace_output: OTLP JSON file, written as requests end; replaced when it exists.
            prometheus_port: port to serve metrics on; ``None`` serves none.

        Raises:
            SetupError: an endpoint, protocol or exporter that does not exist, or a port that is taken.
        """
        self._trace_file = None if trace_output is None else TraceFile(trace_output)
        self._shut_down = False
        self._logs = (SdkLog(), EngineLog())

        self.disabled = disabled()
        self.collector = SpanCollector()
        origin = service_resource()
        # The report is made from the spans, so none may be sampled out or cut: they are kept here even with
        # OTEL_TRACES_EXPORTER=none, and limits apply to exported spans only.
        self.tracer_provider = TracerProvider(
            sampler=ALWAYS_ON, resource=origin, shutdown_on_exit=False, span_limits=UNLIMITED
        )
        targets = {} if self.disabled else _targets(endpoint, protocol)
        self._ledger = DeliveryLedger(targets)
        # Both exporters first, threads after them: an invalid setting leaves no thread running.
        traces, metrics = targets.get("traces"), targets.get("metrics")
        note = self._ledger.note
        self._span_exporter = None if traces is None else span_exporter(traces, answers_of(traces, note))
        self._metric_exporter = None if metrics is None else metric_exporter(metrics, answers_of(metrics, note))
        if metrics is not None and (caveat := histogram_caveat()) is not None:
            warn(caveat)
        self._prometheus = None if prometheus_port is None or self.disabled else _prometheus_endpoint(prometheus_port)
        self._processors: list[SpanProcessor] = [self.collector]
        if self._trace_file is not None:
            self._processors.append(ExportedSpans(self._trace_file))
        if self._span_exporter is not None:
            self._processors.append(ExportedSpans(batch_span_processor(self._span_exporter), self._ledger))
        for processor in self._processors:
            self.tracer_provider.add_span_processor(processor)
        readers: list[MetricReader] = []
        if self._metric_exporter is not None:
            readers.append(periodic_metric_reader(self._metric_exporter))
        if self._prometheus is not None:
            readers.append(self._prometheus.reader)
        self.meter_provider = MeterProvider(
            metric_readers=readers, resource=origin, shutdown_on_exit=False, exemplar_filter=exemplar_filter()
        )

    def __enter__(self) -> Self:
        for log in self._logs:
            log.attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.shutdown()
            # A completed run has written its file; a stopped one keeps the spans that it has, if any.
            if error is not None and self.collector.readable_spans:
                self.write_trace_file()
        finally:
            for log in self._logs:
                log.detach()

    def adopt(self, spans: Iterable[FinishedSpan]) -> None:
        """Adopt spans of another process of this run: they are collected and sent like this process's own."""
        scope = InstrumentationScope("acestep_otel", __version__, semconv.SCHEMA_URL)
        for span in spans:
            readable = span.to_readable_span(self.tracer_provider.resource, scope)
            for processor in self._processors:
                processor.on_end(readable)

    def write_ended_spans(self) -> None:
        """Write ended spans to the trace file, if one was requested; ``write_trace_file`` reports a failure."""
        if self._trace_file is not None:
            self._trace_file.write_ended()

    def write_trace_file(self) -> None:
        """Write the finished spans that are not yet in the trace file, if one was requested.

        Raises:
            OSError: the file could not be written.
        """
        if self._trace_file is not None:
            self._trace_file.finish()

    def shutdown(self, timeout: float = SHUTDOWN_SECONDS) -> None:
        """End open spans and deliver what is queued; give up when the time is over.

        Args:
            timeout: seconds for traces and metrics together.
        """
        if self._shut_down:
            return
        self._shut_down = True
        self.collector.end_open_spans()
        exporters = (self._span_exporter, self._metric_exporter)
        deliver_within(
            timeout,
            [lambda _: self.tracer_provider.shutdown(), self._shut_down_metrics],
            [exporter.shutdown for exporter in exporters if exporter is not None],
            report=lambda _: None,
        )
        for line in (self._ledger.lost(), None if self._prometheus is None else self._prometheus.missed()):
            if line is not None:
                warn(line)

    def _shut_down_metrics(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        if self._prometheus is not None:
            # Waiting for a scrape must not take the time that sending needs.
            self._prometheus.wait_for_last_scrape(seconds if self._metric_exporter is None else seconds / 2)
            self._prometheus.close()
        self.meter_provider.shutdown(timeout_millis=max(0.0, deadline - time.monotonic()) * 1000)


def _targets(endpoint: str | None, protocol: str | None) -> dict[Signal, OtlpTarget]:
    signals: tuple[Signal, ...] = ("traces", "metrics")
    found = {signal: otlp_target(signal, endpoint=endpoint, protocol=protocol) for signal in signals}
    return {signal: target for signal, target in found.items() if target is not None}


def _prometheus_endpoint(port: int) -> PrometheusEndpoint:
    # Imported only if it is selected, like the OTLP exporters.
    from acestep_otel.profiler.telemetry.prometheus import PrometheusEndpoint

    return PrometheusEndpoint(port)


def service_resource() -> Resource:
    """The resource of the telemetry; the environment (``OTEL_SERVICE_NAME``, ...) takes precedence."""
    return resource("acestep-otel", {SERVICE_VERSION: _version()})


def _version() -> str:
    try:
        return version("acestep-otel")
    except PackageNotFoundError:
        return "0+checkout"


_FLUSH_SECONDS: Final = 60.0
"""Seconds after which a device counts as hung; the report is then incomplete."""


def detail_level(word: str | None) -> Detail:
    """The level of the command line, else that of the environment.

    Raises:
        SetupError: an invalid level, or another invalid setting in the environment.
    """
    try:
        settings = Settings.from_environment()
        return settings.detail if word is None else Detail.parse(word)
    except ValueError as error:
        raise SetupError(str(error)) from error


def require_tracing(what: str, options: Options, telemetry: Telemetry) -> Detail:
    """The level of detail of a mode whose figures come from the trace.

    Args:
        what: the mode, in words.
        options: of the command line.
        telemetry: of the run.

    Raises:
        SetupError: nothing would be traced; the message names the setting that disables tracing.
    """
    detail = detail_level(options.detail)
    if telemetry.disabled:
        raise SetupError(f"{what} computes its values from the trace: unset OTEL_SDK_DISABLED, which disables it")
    if detail is Detail.OFF:
        source = "leave out --detail off" if options.detail is not None else f"unset {DETAIL_VARIABLE}=off"
        raise SetupError(f"{what} computes its values from the trace: {source}, or give --detail stage")
    return detail


@contextmanager
def instrumented(telemetry: Telemetry, detail: Detail, songs: str | None = None) -> Iterator[None]:
    """Trace the engine inside the block; ``songs`` as ``AceStepInstrumentor.instrument`` takes it.

    Under ``opentelemetry-instrument`` the engine is traced already, into providers that the report cannot read: the
    command line's providers take over.
    """
    instrumentor = AceStepInstrumentor()
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()
    instrumentor.instrument(
        tracer_provider=telemetry.tracer_provider,
        meter_provider=telemetry.meter_provider,
        detail=detail,
        songs=songs,
    )
    try:
        yield
    finally:
        instrumentor.uninstrument()


def flush_telemetry() -> None:
    """Wait until the providers have the telemetry of all completed work, which is created in the background."""
    AceStepInstrumentor().flush(_FLUSH_SECONDS)
