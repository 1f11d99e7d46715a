"""An OTLP receiver that keeps of every span what a check of traces needs, and nothing else."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from acestep_otel import semconv

KEPT = frozenset({semconv.OUTCOME, semconv.ERROR_TYPE, semconv.DIT_STEPS, semconv.TRUNCATED, semconv.PROFILE_FILE})


@dataclass(frozen=True, slots=True)
class StoredSpan:
    """What is kept of a span; ``parent_id`` is empty for a root, times are Unix nanoseconds."""

    name: str
    span_id: bytes
    parent_id: bytes
    attributes: Mapping[str, Any]
    start_ns: int = 0
    end_ns: int = 0


class TraceStore:
    """Spans by trace."""

    def __init__(self, watched: Collection[str] = ()) -> None:
        self.endpoint = ""
        self._watched = watched
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        self._traces: dict[str, list[StoredSpan]] = defaultdict(list)

    def add(self, request: trace_service_pb2.ExportTraceServiceRequest) -> None:
        """Store what an exporter sent."""
        with self._lock:
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        kept = {
                            pair.key: getattr(pair.value, pair.value.WhichOneof("value"))
                            for pair in span.attributes
                            if pair.key in KEPT
                        }
                        times = span.start_time_unix_nano, span.end_time_unix_nano
                        stored = StoredSpan(span.name, span.span_id, span.parent_span_id, kept, *times)
                        self._traces[span.trace_id.hex()].append(stored)

    def look(self, message: bytes) -> None:
        """Look for the watched words in what an exporter sent."""
        self._seen |= {word for word in self._watched if word.encode() in message}

    def holds(self, word: str) -> bool:
        """Whether a watched word was anywhere in what arrived, spans or metrics."""
        return word in self._seen

    def trace(self, trace_id: str) -> list[StoredSpan]:
        """Every span of a trace; none for one that never arrived."""
        with self._lock:
            return list(self._traces.get(trace_id, ()))

    def __len__(self) -> int:
        with self._lock:
            return sum(map(len, self._traces.values()))


@contextmanager
def trace_store(watched: Collection[str] = ()) -> Iterator[TraceStore]:
    """A store behind a gRPC endpoint, which accepts metrics as well and drops them.

    Args:
        watched: words that ``TraceStore.holds`` reports.
    """
    store = TraceStore(watched)

    class Traces(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002 - gRPC's names
            store.look(request.SerializeToString())
            store.add(request)
            return trace_service_pb2.ExportTraceServiceResponse()

    class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002 - gRPC's names
            store.look(request.SerializeToString())
            return metrics_service_pb2.ExportMetricsServiceResponse()

    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(), server)
    store.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield store
    finally:
        server.stop(None)
