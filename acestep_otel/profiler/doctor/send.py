"""One span and one metric sent by hand, to see what becomes of them.

The command line's own exporters are used, so what arrives here arrives in a run as well.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricExportResult
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import format_trace_id

from acestep_otel import semconv
from acestep_otel.profiler.doctor.tls import credentials_advice, handshake_problem, quiet_grpc, speaks_tls
from acestep_otel.profiler.telemetry.providers import SpanCollector, service_resource
from acestep_otel.recording.instruments import Instruments
from acestep_otel.sdk.otlp import OtlpTarget, Signal, metric_exporter, span_exporter

DEFAULT_ENDPOINTS: Final = {"grpc": "http://localhost:4317", "http/protobuf": "http://localhost:4318"}
"""Where OTLP receivers listen when nothing else is said."""
_CONNECT_SECONDS: Final = 3.0
_EXPORT_SECONDS: Final = 8.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one signal.

    Attributes:
        signal: ``traces`` or ``metrics``.
        address: where it went.
        problem: why it was not accepted; ``None`` when it was.
        fix: what to do about it; ``""`` when it was accepted.
    """

    signal: Signal
    address: str
    problem: str | None = None
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """What identifies the two in a store.

    Attributes:
        trace_id: 32 hexadecimal digits.
        time: Unix seconds; the value of the metric, so that an older one is not taken for it.
    """

    trace_id: str
    time: float


def address_of(signal: Signal, target: OtlpTarget) -> str:
    """Where the exporter of a target sends, as a URL.

    Args:
        signal: ``traces`` or ``metrics``.
        target: from ``acestep_otel.sdk.otlp.otlp_target``.
    """
    found = (
        target.endpoint
        or os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT")
        or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        or DEFAULT_ENDPOINTS[target.protocol]
    )
    return found if "://" in found else f"http://{found}"


class Sender:
    """Makes the span and the metric, and sends them."""

    def __init__(self) -> None:
        quiet_grpc()
        now = time.time()
        resource = service_resource()
        spans = SpanCollector()
        tracers = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False)
        tracers.add_span_processor(spans)
        with tracers.get_tracer("acestep_otel").start_as_current_span(semconv.DOCTOR) as span:
            self.probe = Probe(format_trace_id(span.get_span_context().trace_id), now)
        self._spans = spans.readable_spans
        reader = InMemoryMetricReader()
        meters = MeterProvider(metric_readers=[reader], resource=resource, shutdown_on_exit=False)
        Instruments(meters.get_meter("acestep_otel")).record(semconv.DOCTOR_TIME, now, {})
        self._metrics = reader.get_metrics_data()

    def send_span(self, target: OtlpTarget) -> Delivery:
        """Send the span.

        Raises:
            SetupError: the environment configures the exporter wrongly.
        """
        exporter = span_exporter(target)
        return _deliver(
            "traces", target, lambda: exporter.export(self._spans) is SpanExportResult.SUCCESS, exporter.shutdown
        )

    def send_metric(self, target: OtlpTarget) -> Delivery:
        """Send the metric.

        Raises:
            SetupError: the environment configures the exporter wrongly.
        """
        exporter = metric_exporter(target)
        assert self._metrics is not None
        metrics = self._metrics
        return _deliver(
            "metrics", target, lambda: exporter.export(metrics) is MetricExportResult.SUCCESS, exporter.shutdown
        )


def _deliver(signal: Signal, target: OtlpTarget, export: Callable[[], bool], abort: Callable[[], None]) -> Delivery:
    address = address_of(signal, target)
    if (refusal := _refusal(address, target) or handshake_problem(address, signal, target.protocol)) is not None:
        abort()
        return Delivery(signal, address, *refusal)
    log = _LastMessage()
    accepted = threading.Event()

    def attempt() -> None:
        if export():
            accepted.set()

    with log:
        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(_EXPORT_SECONDS)
        in_time = not thread.is_alive()
        abort()
    if accepted.is_set():
        return Delivery(signal, address)
    reason = log.text if in_time and log.text else f"no answer within {_EXPORT_SECONDS:g} s"
    if urlsplit(address).scheme == "http" and speaks_tls(address):
        return Delivery(signal, address, "the port speaks TLS", f"use {address.replace('http://', 'https://', 1)}")
    return Delivery(signal, address, reason, _advice(reason, signal, target))


def _refusal(address: str, target: OtlpTarget) -> tuple[str, str] | None:
    """What stands in the way of a connection, and what to do; ``None`` when somebody listens."""
    parts = urlsplit(address)
    try:
        port = parts.port or {"https": 443}.get(parts.scheme, 80)
    except ValueError as error:
        return str(error), "correct the endpoint"
    try:
        socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_SECONDS).close()
    except socket.gaierror:
        return f"unknown host {parts.hostname!r}", "correct the endpoint's host name"
    except TimeoutError:
        return (
            f"{parts.hostname}:{port} does not answer",
            "check the address and the firewall between here and there",
        )
    except OSError as error:
        return (
            f"nobody listens on {parts.hostname}:{port} ({error.strerror or error})",
            f"start a collector (docker compose up -d), or correct the endpoint ({target.protocol} usually has port "
            f"{urlsplit(DEFAULT_ENDPOINTS[target.protocol]).port})",
        )
    return None


def _advice(reason: str, signal: Signal, target: OtlpTarget) -> str:
    words = reason.upper()
    if any(word in words for word in ("UNAUTHENTICATED", "PERMISSION_DENIED", "401", "403")):
        return credentials_advice(signal)
    if "UNIMPLEMENTED" in words or "404" in words:
        return "the receiver does not take this signal here: send it to a collector, or switch it off (OTEL_*_EXPORTER)"
    other = "http/protobuf" if target.protocol == "grpc" else "grpc"
    return f"see whether the port speaks {other} (--otlp-protocol {other}), and whether it wants https"


class _LastMessage(logging.Handler):
    """The last warning of the SDK while the block runs; it goes nowhere else."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._logger = logging.getLogger("opentelemetry")
        self._propagated = self._logger.propagate
        self.text = ""

    def __enter__(self) -> None:
        self._propagated = self._logger.propagate
        self._logger.propagate = False
        self._logger.addHandler(self)

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.propagate = self._propagated

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message as one line."""
        self.text = " ".join(record.getMessage().split())
