"""Sends one span and one metric and evaluates the responses.

The command line's own exporters are used, so what arrives here arrives in a run as well.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import format_trace_id

from acestep_otel import semconv
from acestep_otel.profiler.doctor.advice import advice, diagnosed
from acestep_otel.profiler.telemetry.providers import SpanCollector, service_resource
from acestep_otel.recording.instruments import Instruments
from acestep_otel.sdk.answers import Answer, Answers, Signal
from acestep_otel.sdk.otlp import DEFAULT_ENDPOINTS, OtlpTarget, answers_of, metric_exporter, span_exporter

_CONNECT_SECONDS: Final = 3.0
_EXPORT_SECONDS: Final = 8.0
_ABORT_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Delivery:
    """The outcome of one signal.

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
    """The identity of the span and the metric in a store.

    Attributes:
        trace_id: 32 hexadecimal digits.
        time: Unix seconds; the value of the metric, to distinguish it from an older one.
    """

    trace_id: str
    time: float


class Sender:
    """Creates the span and the metric, and sends them."""

    def __init__(self) -> None:
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
        answers = answers_of(target)
        exporter = span_exporter(target, answers)
        return _deliver(target, answers, lambda: exporter.export(self._spans), exporter.shutdown)

    def send_metric(self, target: OtlpTarget) -> Delivery:
        """Send the metric.

        Raises:
            SetupError: the environment configures the exporter wrongly.
        """
        answers = answers_of(target)
        exporter = metric_exporter(target, answers)
        assert self._metrics is not None
        metrics = self._metrics
        return _deliver(target, answers, lambda: exporter.export(metrics), exporter.shutdown)


def _deliver(
    target: OtlpTarget, answers: Answers, export: Callable[[], object], abort: Callable[[], object]
) -> Delivery:
    address = str(target)
    if (refusal := _refusal(target)) is not None:
        abort()
        return Delivery(target.signal, address, *refusal)
    with _Silence():
        thread = threading.Thread(target=export, daemon=True)
        thread.start()
        # The first answer is sufficient: an exporter would retry until its timeout.
        answer = answers.wait(_EXPORT_SECONDS) or Answer("timeout", words=f"waited {_EXPORT_SECONDS:g} s")
        abort()
        thread.join(_ABORT_SECONDS)
    if answer.cause == "accepted":
        return Delivery(target.signal, address)
    answer = diagnosed(answer, target)
    return Delivery(target.signal, address, str(answer), advice(answer, target))


def _refusal(target: OtlpTarget) -> tuple[str, str] | None:
    """Why a connection fails, and the advice; ``None`` if a server listens."""
    address = target.address
    port = address.port or (443 if target.tls else 80)
    place = f"[{address.host}]:{port}" if ":" in address.host else f"{address.host}:{port}"
    try:
        socket.create_connection((address.host, port), timeout=_CONNECT_SECONDS).close()
    except (socket.gaierror, UnicodeError):
        return f"unknown host {address.host!r}", f"correct the host name in {target.source}"
    except TimeoutError:
        return f"{place} does not answer", "check the address and the firewalls on the way"
    except OSError as error:
        return (
            f"connection refused by {place} ({error.strerror or error})",
            f"start a collector (docker compose up -d), or correct {target.source} ({target.protocol} usually has port "
            f"{DEFAULT_ENDPOINTS[target.protocol].rpartition(':')[2]})",
        )
    return None


class _Silence:
    """Suppresses the SDK's log inside the block: the receiver's response is evaluated instead."""

    def __init__(self) -> None:
        self._handler = logging.NullHandler()
        self._logger = logging.getLogger("opentelemetry")
        self._propagated = self._logger.propagate

    def __enter__(self) -> None:
        self._propagated = self._logger.propagate
        self._logger.propagate = False
        self._logger.addHandler(self._handler)

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self._handler)
        self._logger.propagate = self._propagated
