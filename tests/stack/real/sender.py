"""A service's telemetry without a service: traces of known kinds, and a counter.

``python -m tests.stack.real.sender --endpoint URL error=5 ordinary=50 requests=7`` sends them over OTLP, and prints the
trace ids of each kind as JSON. It loads no model, so it is over in a second.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Final

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Tracer, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context

from acestep_otel import semconv

PLANTED: Final = "a caption that somebody wrote"
"""On the spans of kind ``error``, wherever a text can be."""
STAGES: Final = (semconv.LM, semconv.CONDITION, semconv.DIT, semconv.VAE_DECODE)
SPANS: Final = 2 + len(STAGES)
"""Spans of a trace: the service's own, the request's, and those of its stages."""
KINDS: Final = ("ordinary", "cancelled", "error", "oom", "slow", "forced")
_BATCH: Final = 8
"""Traces in one request to the collector."""


def main() -> None:
    """Send what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--job", default="studio")
    parser.add_argument("--namespace", help="service.namespace, which the label job has before the name")
    parser.add_argument("--instance", default="one")
    parser.add_argument("--exports", type=int, default=1, help="how often the counter is sent")
    parser.add_argument("amounts", nargs="+", metavar="KIND=NUMBER", help=f"requests, or one of {', '.join(KINDS)}")
    options = parser.parse_args()
    amounts = {kind: int(number) for kind, _, number in (word.partition("=") for word in options.amounts)}
    identity = {"service.name": options.job, "service.instance.id": options.instance, "host.name": "gpu-1"}
    resource = Resource(identity | ({"service.namespace": options.namespace} if options.namespace else {}))
    _count(options.endpoint, resource, amounts.pop("requests", 0), options.exports)
    json.dump(_traces(options.endpoint, resource, amounts), sys.stdout)


def _traces(endpoint: str, resource: Resource, amounts: dict[str, int]) -> dict[str, list[str]]:
    finished = InMemorySpanExporter()
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(finished))
    tracer = provider.get_tracer("acestep_otel")
    sent = {kind: [_trace(tracer, kind) for _ in range(number)] for kind, number in amounts.items()}
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=60)
    spans = finished.get_finished_spans()
    for first in range(0, len(spans), _BATCH * SPANS):
        assert exporter.export(spans[first : first + _BATCH * SPANS]) is SpanExportResult.SUCCESS
    exporter.shutdown()
    return sent


def _trace(tracer: Tracer, kind: str) -> str:
    """One request: a server's span, the engine's below it, its stages below that."""
    seconds = 90 if kind == "slow" else 5
    end = time.time_ns()
    start = end - seconds * 10**9
    root = tracer.start_span("POST /songs", kind=SpanKind.SERVER, start_time=start)
    root.set_attribute("http.route", "/songs")
    request = tracer.start_span(semconv.GENERATE_MUSIC, set_span_in_context(root), start_time=start)
    request.set_attribute(semconv.REQUEST_MODEL, "acestep-v15-turbo")
    if kind == "forced":
        request.set_attribute(semconv.TRACE_FORCE, True)
    length = (end - start) // len(STAGES)
    for place, name in enumerate(STAGES):
        stage = tracer.start_span(name, set_span_in_context(request), start_time=start + place * length)
        if name == semconv.DIT:
            _end_badly(stage, kind)
        stage.end(start + (place + 1) * length)
    _end_badly(request, kind)
    for span in (request, root):
        span.end(end)
    return f"{root.get_span_context().trace_id:032x}"


def _end_badly(span: Span, kind: str) -> None:
    if kind == "cancelled":
        span.set_attribute(semconv.OUTCOME, "cancelled")
    elif kind == "oom":
        span.set_attribute(semconv.ERROR_TYPE, "OutOfMemory")
    elif kind == "error":
        span.set_attribute(semconv.CAPTION, PLANTED)
        span.set_attribute("app.request.body", PLANTED)
        span.record_exception(ValueError(f"cannot make {PLANTED}"))
        span.set_status(Status(StatusCode.ERROR, f"cannot make {PLANTED}"))


def _count(endpoint: str, resource: Resource, requests: int, exports: int) -> None:
    """Count requests, spread over several sends."""
    if not requests:
        return
    exporter = OTLPMetricExporter(endpoint=endpoint, timeout=60)
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=float("inf"))
    meters = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
    counter = meters.get_meter("acestep_otel").create_counter(semconv.REQUESTS.name, semconv.REQUESTS.unit)
    for export in range(exports):
        share = requests // exports + (requests % exports if export == 0 else 0)
        counter.add(share, {semconv.OUTCOME: "ok", semconv.STAGE: semconv.GENERATE_MUSIC})
        assert meters.force_flush(60_000)
        time.sleep(0.2)
    reader.shutdown()


if __name__ == "__main__":
    main()
