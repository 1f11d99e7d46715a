"""Processors and readers before the exporters, set up from the standard variables: batches, intervals, limits.

Every legal value works, also a queue smaller than the usual batch, a delay of 0 and a timeout of 0, which the SDK
refuses or misinterprets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk.metrics import (
    AlwaysOffExemplarFilter,
    AlwaysOnExemplarFilter,
    ExemplarFilter,
    TraceBasedExemplarFilter,
)
from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Link

from acestep_otel.sdk.variables import count, milliseconds, variable

_EXEMPLAR_FILTERS: Final[Mapping[str, Callable[[], ExemplarFilter]]] = {
    "always_on": AlwaysOnExemplarFilter,
    "always_off": AlwaysOffExemplarFilter,
    "trace_based": TraceBasedExemplarFilter,
}
_NO_LIMIT: Final = 2**31 - 1
_SHORTEST_INTERVAL: Final = 100
"""Milliseconds. The SDK starts to collect before its provider exists, and logs that it cannot."""
_Item = TypeVar("_Item")

UNLIMITED: Final = SpanLimits(
    max_attributes=SpanLimits.UNSET,
    max_events=SpanLimits.UNSET,
    max_links=SpanLimits.UNSET,
    max_span_attributes=SpanLimits.UNSET,
    max_event_attributes=SpanLimits.UNSET,
    max_link_attributes=SpanLimits.UNSET,
    max_attribute_length=SpanLimits.UNSET,
    max_span_attribute_length=SpanLimits.UNSET,
)
"""For spans from which figures are computed; ``Limits`` then cuts the exported spans."""


def batch_span_processor(
    exporter: SpanExporter, meter_provider: MeterProvider | None = None, *, schedule_delay: int = 5_000
) -> BatchSpanProcessor:
    """A processor with the queue, the batches and the delay of ``OTEL_BSP_*``.

    Args:
        exporter: takes the batches.
        meter_provider: counts the spans that a full queue drops, where the SDK's own metrics are on.
        schedule_delay: milliseconds, where ``OTEL_BSP_SCHEDULE_DELAY`` is not set.

    Raises:
        SetupError: a variable holds no number.
    """
    queue = count("OTEL_BSP_MAX_QUEUE_SIZE", 2_048)
    return BatchSpanProcessor(
        exporter,
        max_queue_size=queue,
        schedule_delay_millis=max(1, milliseconds("OTEL_BSP_SCHEDULE_DELAY", schedule_delay)),
        max_export_batch_size=min(queue, count("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)),
        export_timeout_millis=milliseconds("OTEL_BSP_EXPORT_TIMEOUT", 30_000) or _NO_LIMIT,
        meter_provider=meter_provider,
    )


def periodic_metric_reader(exporter: MetricExporter) -> PeriodicExportingMetricReader:
    """A reader with the interval and the timeout of ``OTEL_METRIC_EXPORT_*``.

    Raises:
        SetupError: a variable holds no number.
    """
    return PeriodicExportingMetricReader(
        exporter,
        export_interval_millis=max(_SHORTEST_INTERVAL, milliseconds("OTEL_METRIC_EXPORT_INTERVAL", 60_000)),
        export_timeout_millis=milliseconds("OTEL_METRIC_EXPORT_TIMEOUT", 30_000) or _NO_LIMIT,
    )


def exemplar_filter() -> ExemplarFilter:
    """The filter that ``OTEL_METRICS_EXEMPLAR_FILTER`` names."""
    return _EXEMPLAR_FILTERS[(variable("OTEL_METRICS_EXEMPLAR_FILTER") or "trace_based").lower()]()


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of ``OTEL_SPAN_*`` and ``OTEL_ATTRIBUTE_*``, for spans that were recorded without."""

    limits: SpanLimits

    @classmethod
    def from_environment(cls) -> Limits:
        """The limits of the environment.

        Raises:
            ValueError: a variable holds no number.
        """
        return cls(SpanLimits())

    def applied(self, span: ReadableSpan) -> ReadableSpan:
        """The span as an SDK with these limits would have recorded it; the same where nothing is cut."""
        limits = self.limits
        if self._is_within(span):
            return span
        return ReadableSpan(
            span.name,
            span.context,
            parent=span.parent,
            resource=span.resource,
            attributes=BoundedAttributes(
                limits.max_span_attributes, span.attributes, max_value_len=limits.max_span_attribute_length
            ),
            events=[self._event(event) for event in _last(span.events, limits.max_events)],
            links=[self._link(link) for link in _last(span.links, limits.max_links)],
            kind=span.kind,
            status=span.status,
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )

    def _is_within(self, span: ReadableSpan) -> bool:
        limits = self.limits
        return (
            limits.max_span_attribute_length is None
            and limits.max_attribute_length is None
            and not span.events
            and not span.links
            and (limits.max_span_attributes is None or len(span.attributes or {}) <= limits.max_span_attributes)
        )

    def _event(self, event: Event) -> Event:
        limits = self.limits
        attributes = BoundedAttributes(
            limits.max_event_attributes, event.attributes, max_value_len=limits.max_attribute_length
        )
        return Event(event.name, attributes, event.timestamp)

    def _link(self, link: Link) -> Link:
        limits = self.limits
        return Link(
            link.context,
            BoundedAttributes(limits.max_link_attributes, link.attributes, max_value_len=limits.max_attribute_length),
        )


def _last(items: Sequence[_Item], most: int | None) -> Sequence[_Item]:
    return items if most is None else items[len(items) - min(most, len(items)) :]
