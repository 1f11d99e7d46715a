"""Forwards spans of a child process to the parent's trace.

A child that ends normally has created its own spans, which are forwarded as they end. For a killed child the parent
only has the journal: it creates spans of the stages in progress and marks them as truncated.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field

from opentelemetry.exporter.otlp.json.file import FileSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.trace import Span, StatusCode, Tracer, set_span_in_context

from acestep_otel import semconv
from acestep_otel.profiler.tier_test.protocol import Spans, StageMark


class SpanForwarder(SpanProcessor):
    """Forwards every span to the parent when it ends."""

    def __init__(self, send: Callable[[Spans], None]) -> None:
        self._send = send

    def on_end(self, span: ReadableSpan) -> None:
        """Forward one span."""
        stream = io.StringIO()
        FileSpanExporter(stream=stream).export([span])
        self._send(Spans(stream.getvalue()))


@dataclass(slots=True)
class _Entry:
    """A stage of the journal; ``end_ns`` is ``None`` while it runs."""

    name: str
    start_ns: int
    end_ns: int | None = None
    children: list[_Entry] = field(default_factory=list)


class OpenStages:
    """The open stages of a child, by its journal, with the stages that ended inside them."""

    def __init__(self) -> None:
        self._open: list[_Entry] = []

    def follow(self, mark: StageMark) -> None:
        """Process an event of the child. A finished request is dropped: its spans come from the child itself."""
        if not mark.ended:
            entry = _Entry(mark.name, mark.time_ns)
            if self._open:
                self._open[-1].children.append(entry)
            self._open.append(entry)
        elif self._open:
            self._open.pop().end_ns = mark.time_ns

    @property
    def innermost(self) -> str | None:
        """Name of the innermost open stage; ``None`` between two requests."""
        return self._open[-1].name if self._open else None

    def trace(self, tracer: Tracer, parent: Span, end_ns: int) -> None:
        """Create spans of the stages that were open when a child ended.

        Args:
            tracer: of the parent process.
            parent: their parent span.
            end_ns: when the child ended, Unix nanoseconds.
        """
        if self._open:
            _trace(self._open[0], tracer, parent, end_ns)


def _trace(entry: _Entry, tracer: Tracer, parent: Span, end_ns: int) -> None:
    attributes: dict[str, str | bool] = {semconv.CLOCK: "host"}
    if entry.end_ns is None:
        attributes[semconv.TRUNCATED] = True
    span = tracer.start_span(
        entry.name, context=set_span_in_context(parent), start_time=entry.start_ns, attributes=attributes
    )
    for child in entry.children:
        _trace(child, tracer, span, end_ns)
    if entry.end_ns is None:
        span.set_status(StatusCode.ERROR, "the process ended")
    span.end(end_time=entry.end_ns or end_ns)
