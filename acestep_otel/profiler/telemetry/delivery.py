"""The delivery of a run's telemetry: counted from the receivers' responses, and summarised in one line at its end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from acestep_otel.profiler.terminal import warn
from acestep_otel.sdk.answers import Answer, Delivery, Signal
from acestep_otel.sdk.otlp import OtlpTarget
from acestep_otel.sdk.pipeline import Limits


class ExportedSpans(SpanProcessor):
    """Passes finished spans to another processor, cut to the limits of the environment, and counts them."""

    def __init__(self, processor: SpanProcessor, ledger: DeliveryLedger | None = None) -> None:
        self._processor = processor
        self._ledger = ledger
        self._limits = Limits.from_environment()

    # The SDK passes the context by keyword, so the name stays.
    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Pass it on."""
        self._processor.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        """Count the span, and pass it on within the limits."""
        if self._ledger is not None:
            self._ledger.hand_over_span()
        self._processor.on_end(self._limits.applied(span))

    def shutdown(self) -> None:
        """Pass it on."""
        self._processor.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Pass it on."""
        return self._processor.force_flush(timeout_millis)


class DeliveryLedger:
    """Counts the spans and data points that were handed over for export, and those that arrived."""

    def __init__(self, targets: Mapping[Signal, OtlpTarget]) -> None:
        self._targets = targets
        self._lock = threading.Lock()
        self._handed_over = 0
        self._arrived = 0
        self._last_metrics: Delivery | None = None
        self._problems: dict[Signal, Answer] = {}

    def hand_over_span(self) -> None:
        """A span was given to its exporter's queue."""
        with self._lock:
            self._handed_over += 1

    def note(self, delivery: Delivery) -> None:
        """Note the outcome of a batch."""
        with self._lock:
            if delivery.signal == "traces":
                self._arrived += delivery.items - delivery.lost
            else:
                # Metrics are cumulative: a later batch contains the values of an earlier one.
                self._last_metrics = delivery
            if delivery.lost:
                self._problems[delivery.signal] = delivery.answer

    def lost(self) -> str | None:
        """The items that did not arrive and the reason, as one line; ``None`` if all arrived."""
        with self._lock:
            parts = []
            if (spans := self._handed_over - self._arrived) > 0:
                parts.append(self._part("traces", f"{spans:,} of {self._handed_over:,} spans"))
            last = self._last_metrics
            if last is not None and last.lost:
                parts.append(self._part("metrics", f"{last.lost:,} of {last.items:,} last data points"))
            elif last is None and "metrics" in self._targets:
                parts.append(self._part("metrics", "all metrics"))
        return f"telemetry was lost: {'; '.join(parts)}" if parts else None

    def _part(self, signal: Signal, what: str) -> str:
        problem = self._problems.get(signal)
        why = "not delivered in time" if problem is None else str(problem)
        return f"{what} for {self._targets[signal]} ({why})"


class EngineLog(logging.Handler):
    """Prints warnings of the engine and the layer as lines of the command line, each once per run."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._loggers = [logging.getLogger(name) for name in ("acestep", "acestep_otel")]
        self._propagated = [logger.propagate for logger in self._loggers]
        self._said: set[str] = set()

    def attach(self) -> None:
        """Take over the logs."""
        self._propagated = [logger.propagate for logger in self._loggers]
        for logger in self._loggers:
            logger.propagate = False
            logger.addHandler(self)

    def detach(self) -> None:
        """Give the logs back."""
        for logger, propagated in zip(self._loggers, self._propagated, strict=True):
            logger.removeHandler(self)
            logger.propagate = propagated

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message once: warm-up and run log the same messages."""
        message = record.getMessage()
        if message not in self._said:
            self._said.add(message)
            warn(message)


class SdkLog(logging.Handler):
    """Reduces the SDK's log to its first warning, as one line on standard error.

    Records of exporters about deliveries are ignored, because ``DeliveryLedger`` has the counts.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._logger = logging.getLogger("opentelemetry")
        self._propagated = self._logger.propagate
        self._reported = False

    def attach(self) -> None:
        """Take over the SDK's log."""
        self._propagated = self._logger.propagate
        self._logger.propagate = False
        self._logger.addHandler(self)

    def detach(self) -> None:
        """Give the SDK's log back."""
        self._logger.removeHandler(self)
        self._logger.propagate = self._propagated

    def emit(self, record: logging.LogRecord) -> None:
        """Report the first record that is not about a delivery."""
        if not record.name.startswith(_ABOUT_DELIVERIES) and not self._reported:
            self._reported = True
            warn(record.getMessage())


_ABOUT_DELIVERIES = (
    "opentelemetry.exporter.otlp",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.sdk.trace.export",
)
