"""Finished spans in one form, whether they come from this process or from a trace file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags, format_span_id, format_trace_id

from acestep_otel import semconv

AttributeValue = Any
"""A string, bool, int or float, or a list of one of them: what OpenTelemetry allows on a span."""

_OTLP_ERROR_CODES = (2, "STATUS_CODE_ERROR")


@dataclass(frozen=True, slots=True)
class SpanEvent:
    """An event at one time inside a span.

    Attributes:
        name: for example ``exception``.
        time_ns: Unix nanoseconds.
        attributes: its attributes.
    """

    name: str
    time_ns: int
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FinishedSpan:
    """One span whose work is over.

    Attributes:
        name: a name of ``acestep_otel.semconv``.
        span_id: 16 hexadecimal digits.
        parent_id: 16 hexadecimal digits, or ``None`` for a root.
        trace_id: 32 hexadecimal digits.
        start_ns: Unix nanoseconds.
        end_ns: Unix nanoseconds.
        attributes: by the names of ``acestep_otel.semconv``.
        status: ``error`` when the work failed.
        error: class name of the exception, ``None`` without one.
        events: in order.
    """

    name: str
    span_id: str
    parent_id: str | None
    trace_id: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    status: Literal["ok", "error"] = "ok"
    error: str | None = None
    events: tuple[SpanEvent, ...] = ()

    @property
    def seconds(self) -> float:
        """Duration."""
        return (self.end_ns - self.start_ns) / 1e9

    @classmethod
    def from_readable_span(cls, span: ReadableSpan) -> FinishedSpan:
        """Convert a span of the SDK.

        Raises:
            ValueError: the span has not ended.
        """
        if span.context is None or span.start_time is None or span.end_time is None:
            raise ValueError(f"span {span.name!r} has not ended")
        attributes: dict[str, AttributeValue] = dict(span.attributes or {})
        return cls(
            name=span.name,
            span_id=format_span_id(span.context.span_id),
            parent_id=format_span_id(span.parent.span_id) if span.parent else None,
            trace_id=format_trace_id(span.context.trace_id),
            start_ns=span.start_time,
            end_ns=span.end_time,
            attributes=attributes,
            status="error" if span.status.status_code is StatusCode.ERROR else "ok",
            error=attributes.get(semconv.ERROR_TYPE),
            events=tuple(SpanEvent(event.name, event.timestamp, dict(event.attributes or {})) for event in span.events),
        )

    @classmethod
    def from_otlp_json(cls, lines: Iterable[str]) -> Iterator[FinishedSpan]:
        """Read a trace file: OTLP JSON, one export request a line.

        Raises:
            ValueError: a line is not an OTLP trace request; the message has its number.
        """
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                for encoded in _encoded_spans(json.loads(line)):
                    yield cls._from_otlp(encoded)
            except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
                raise ValueError(f"line {number} is not an OTLP trace request: {error!r}") from error

    def to_readable_span(self, resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
        """A span of the SDK, for exporters: used for spans of another process of the same run.

        Args:
            resource: resource of the span.
            scope: instrumentation scope of the span.
        """
        parent = None if self.parent_id is None else _context(self.trace_id, self.parent_id)
        return ReadableSpan(
            self.name,
            _context(self.trace_id, self.span_id),
            parent=parent,
            resource=resource,
            attributes=self.attributes,
            events=[Event(event.name, event.attributes, event.time_ns) for event in self.events],
            status=Status(StatusCode.ERROR, self.error) if self.status == "error" else Status(),
            start_time=self.start_ns,
            end_time=self.end_ns,
            instrumentation_scope=scope,
        )

    @classmethod
    def _from_otlp(cls, encoded: Mapping[str, Any]) -> FinishedSpan:
        attributes = _attributes(encoded)
        return cls(
            name=encoded["name"],
            span_id=encoded["spanId"],
            parent_id=encoded.get("parentSpanId") or None,
            trace_id=encoded["traceId"],
            start_ns=int(encoded["startTimeUnixNano"]),
            end_ns=int(encoded["endTimeUnixNano"]),
            attributes=attributes,
            status="error" if encoded.get("status", {}).get("code") in _OTLP_ERROR_CODES else "ok",
            error=attributes.get(semconv.ERROR_TYPE),
            events=tuple(
                SpanEvent(event["name"], int(event["timeUnixNano"]), _attributes(event))
                for event in encoded.get("events", ())
            ),
        )


def _context(trace_id: str, span_id: str) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def _encoded_spans(request: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for resource in request["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            yield from scope["spans"]


def _attributes(encoded: Mapping[str, Any]) -> dict[str, AttributeValue]:
    return {pair["key"]: _value(pair["value"]) for pair in encoded.get("attributes", ())}


def _value(encoded: Mapping[str, Any]) -> AttributeValue:
    ((kind, value),) = encoded.items()
    match kind:
        case "intValue":
            # JSON carries 64-bit integers as strings.
            return int(value)
        case "doubleValue":
            return float(value)
        case "stringValue" | "boolValue":
            return value
        case "arrayValue":
            return [_value(item) for item in value.get("values", ())]
    raise ValueError(f"attribute of kind {kind!r}")


@dataclass(frozen=True, slots=True)
class Run:
    """The spans of one call of a verb of the engine.

    Attributes:
        root: its root span.
        spans: everything below it, in order of start.
    """

    root: FinishedSpan
    spans: tuple[FinishedSpan, ...]

    def named(self, name: str) -> list[FinishedSpan]:
        """The spans of one name, in order of start."""
        return [span for span in self.spans if span.name == name]


def runs(spans: Sequence[FinishedSpan], root_name: str = semconv.GENERATE_MUSIC) -> list[Run]:
    """Every run among the spans, in order of start, warm-ups included.

    A run is found by the name of its root, which may be a child of a span of the calling application.
    """
    children: dict[str | None, list[FinishedSpan]] = {}
    for span in sorted(spans, key=lambda span: (span.start_ns, span.end_ns)):
        children.setdefault(span.parent_id, []).append(span)

    def below(span_id: str) -> Iterator[FinishedSpan]:
        for child in children.get(span_id, ()):
            yield child
            yield from below(child.span_id)

    roots = sorted((span for span in spans if span.name == root_name), key=lambda span: span.start_ns)
    return [
        Run(root, tuple(sorted(below(root.span_id), key=lambda span: (span.start_ns, span.end_ns)))) for root in roots
    ]


def measured_runs(spans: Sequence[FinishedSpan], root_name: str = semconv.GENERATE_MUSIC) -> list[Run]:
    """The runs that are not warm-ups."""
    return [run for run in runs(spans, root_name) if not run.root.attributes.get(semconv.WARMUP)]


@dataclass(frozen=True, slots=True)
class Preparation:
    """The preparation of the measured runs, in seconds; ``None`` if no span shows it.

    Attributes:
        load: loading the models.
        warm_up: the warm-up runs.
    """

    load: float | None
    warm_up: float | None

    @classmethod
    def of(cls, spans: Sequence[FinishedSpan], root_name: str = semconv.GENERATE_MUSIC) -> Preparation:
        """Read it from all traced spans; a load inside a run is part of that run."""
        loads = [span.seconds for span in spans if span.name == semconv.MODEL_LOAD and span.parent_id is None]
        warm_ups = [run.root.seconds for run in runs(spans, root_name) if run.root.attributes.get(semconv.WARMUP)]
        return cls(sum(loads) if loads else None, sum(warm_ups) if warm_ups else None)
