"""For tests of a service: the engine's spans and metrics, kept in memory.

Usage
-----
::

    from acestep_otel.testing import capture_telemetry, tree

    def test_a_song_is_planned_and_rendered():
        with capture_telemetry(detail="stage") as captured:
            generate_a_song()
        (song,) = tree(captured.spans)
        assert song == ("generate_music", ["acestep.condition", "acestep.dit", "acestep.vae.decode"])

Needs ``opentelemetry-sdk``. The global providers are not changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler

from acestep_otel.instrumentor import AceStepInstrumentor
from acestep_otel.settings import Detail


@contextmanager
def capture_telemetry(*, detail: Detail | str | None = None) -> Iterator[TelemetryCapture]:
    """Trace the engine inside the block, into memory.

    Args:
        detail: how deep the span tree goes; the environment's when not given.

    Raises:
        RuntimeError: the engine is traced already, into other providers.
    """
    if AceStepInstrumentor().is_instrumented_by_opentelemetry:
        raise RuntimeError("the engine is traced already: call AceStepInstrumentor().uninstrument() first")
    captured = TelemetryCapture()
    captured.instrument(detail=detail)
    try:
        yield captured
    finally:
        AceStepInstrumentor().uninstrument()


class TelemetryCapture:
    """An SDK in memory.

    Attributes:
        tracer_provider: for other instrumentations, and for ``QueueTelemetry``, of the same test.
        meter_provider: the same for metrics.
    """

    def __init__(self, sampler: Sampler = ALWAYS_ON) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.tracer_provider = TracerProvider(sampler=sampler)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.meter_provider = MeterProvider([self._reader])

    def instrument(self, **settings: Any) -> None:
        """Trace the engine into this memory; ``AceStepInstrumentor().uninstrument()`` ends it.

        Args:
            settings: ``detail`` and ``run_id``, as ``AceStepInstrumentor.instrument`` takes them.
        """
        AceStepInstrumentor().instrument(
            tracer_provider=self.tracer_provider, meter_provider=self.meter_provider, **settings
        )

    @property
    def spans(self) -> list[ReadableSpan]:
        """Every span that has ended, ordered by start; if two started at the same time, the longer one comes first."""
        AceStepInstrumentor().flush()
        return sorted(
            self._exporter.get_finished_spans(), key=lambda span: (span.start_time or 0, -(span.end_time or 0))
        )

    def named(self, name: str) -> list[ReadableSpan]:
        """Spans of one name."""
        return [span for span in self.spans if span.name == name]

    def metric(self, name: str) -> list[Any]:
        """Data points of one metric so far; none when it was not recorded."""
        AceStepInstrumentor().flush()
        data = self._reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


def tree(spans: Sequence[ReadableSpan]) -> list[Any]:
    """Names as nested lists: a name, or a pair of a name and what is below it.

    Args:
        spans: in the order of their starts; one whose parent is not among them is at the top.
    """
    known = {_id(span) for span in spans}
    children: dict[int | None, list[ReadableSpan]] = {}
    for span in spans:
        parent = span.parent.span_id if span.parent and span.parent.span_id in known else None
        children.setdefault(parent, []).append(span)

    def below(span_id: int | None) -> list[Any]:
        return [
            (span.name, below(_id(span))) if children.get(_id(span)) else span.name
            for span in children.get(span_id, ())
        ]

    return below(None)


def _id(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id
