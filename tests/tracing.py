"""An SDK in memory, and the instrumentor on top of it, for tests that look at spans and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler

from acestep_otel.instrumentor import AceStepInstrumentor
from acestep_otel.semconv import MetricDefinition


class Traced:
    def __init__(self, sampler: Sampler = ALWAYS_ON) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meter_provider = MeterProvider([self.reader])

    def instrument(self, **kwargs: Any) -> None:
        AceStepInstrumentor().instrument(tracer_provider=self.provider, meter_provider=self.meter_provider, **kwargs)

    @property
    def spans(self) -> list[ReadableSpan]:
        AceStepInstrumentor().flush()
        return sorted(self.exporter.get_finished_spans(), key=lambda s: (s.start_time, -s.end_time))

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def metric(self, definition: MetricDefinition) -> list[Any]:
        AceStepInstrumentor().flush()
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == definition.name
            for point in metric.data.data_points
        ]


def tree(spans: Sequence[ReadableSpan]) -> list[Any]:
    """Names as nested lists: a span's children in the order they started."""
    known = {span.context.span_id for span in spans}
    children: dict[int | None, list[ReadableSpan]] = {}
    for span in spans:
        parent = span.parent.span_id if span.parent and span.parent.span_id in known else None
        children.setdefault(parent, []).append(span)

    def below(span_id: int | None) -> list[Any]:
        return [
            (s.name, below(s.context.span_id)) if children.get(s.context.span_id) else s.name
            for s in children.get(span_id, ())
        ]

    return below(None)
