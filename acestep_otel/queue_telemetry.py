"""A service's queue in front of the engine: how long requests wait, how many, and in which trace.

Usage
-----
A request waits in the trace of its caller, and so does the work that a worker's thread does for it later::

    queue = QueueTelemetry(capacity=16)

    waiting = queue.enter()              # where the request is accepted; queue.reject() where there is no room
    ...
    waiting.leave()                      # where a worker takes it, or waiting.leave(CANCELLED)
    waiting.context.run(generate)        # in the worker's thread: spans below are those of the caller's trace

Nothing here needs the OpenTelemetry SDK; without one it does nothing.
"""

from __future__ import annotations

import contextvars
import os
import threading
import time
from typing import Final

from opentelemetry import trace
from opentelemetry.metrics import MeterProvider, get_meter
from opentelemetry.trace import Span, TracerProvider, get_tracer

from acestep_otel import __version__, semconv
from acestep_otel.recording import outcomes
from acestep_otel.recording.instruments import Instruments

STARTED: Final = outcomes.OK
"""Outcome of a wait that ended with a worker."""
CANCELLED: Final = outcomes.CANCELLED
"""Outcome of a wait that the caller cancelled."""


class QueueTelemetry:
    """Spans and metrics of one queue."""

    def __init__(
        self,
        capacity: int,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        """Declare a queue.

        Args:
            capacity: requests that may wait at most.
            tracer_provider: where spans go; the global one when not given.
            meter_provider: where metrics go; the global one when not given.
        """
        self._tracer = get_tracer("acestep_otel", __version__, tracer_provider, schema_url=semconv.SCHEMA_URL)
        self._instruments = Instruments(
            get_meter("acestep_otel", __version__, meter_provider, schema_url=semconv.SCHEMA_URL)
        )
        self._capacity = capacity
        self._process = 0
        self._declare()

    def _declare(self) -> None:
        """Create the queue's metrics in this process; a forked child creates its own at first use."""
        if self._process == os.getpid():
            return
        self._process = os.getpid()
        self._instruments.record(semconv.QUEUE_CAPACITY, self._capacity, {})
        # Dashboards show zero before the first request, and rates have a first point.
        self._instruments.record(semconv.QUEUE_LENGTH, 0, {})
        self._instruments.record(semconv.QUEUE_REJECTED, 0, {})

    def enter(self) -> Waiting:
        """A request enters the queue, in the current context."""
        self._declare()
        self._instruments.record(semconv.QUEUE_LENGTH, 1, {})
        return Waiting(self._tracer.start_span(semconv.QUEUE_WAIT), self._instruments)

    def reject(self) -> None:
        """A request is turned away because the queue is full."""
        self._declare()
        self._instruments.record(semconv.QUEUE_REJECTED, 1, {})


class Waiting:
    """One request's time in the queue.

    Attributes:
        context: of the moment that the request was accepted; run the work in it.
    """

    def __init__(self, span: Span, instruments: Instruments) -> None:
        self.context = contextvars.copy_context()
        self._span = span
        self._instruments = instruments
        self._start_ns = time.perf_counter_ns()
        self._lock = threading.Lock()
        self._left = False
        self._process = os.getpid()

    def leave(self, outcome: str = STARTED) -> None:
        """The request leaves the queue; only the first call counts.

        Args:
            outcome: ``STARTED``, ``CANCELLED``, or why no worker took it.
        """
        with self._lock:
            if self._left:
                return
            self._left = True
        seconds = (time.perf_counter_ns() - self._start_ns) / 1e9
        self._span.set_attribute(semconv.OUTCOME, outcome)
        # In a child that was forked in the meantime the request is in no queue.
        if self._process == os.getpid():
            self._instruments.record(semconv.QUEUE_LENGTH, -1, {})
        self._instruments.record(
            semconv.QUEUE_WAIT_DURATION,
            seconds,
            {semconv.OUTCOME: outcome},
            trace.set_span_in_context(self._span),
        )
        self._span.end()
