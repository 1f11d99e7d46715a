"""Real OTLP receivers for tests: gRPC, HTTP, a collector before one, a port that refuses, one that never answers."""

from __future__ import annotations

import gzip
import socket
import ssl
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from benchmarks.collectors import free_port, rotel
from tests.programs import program


@dataclass
class Received:
    """What a receiver got."""

    endpoint: str
    traces: list[trace_service_pb2.ExportTraceServiceRequest] = field(default_factory=list)
    metrics: list[metrics_service_pb2.ExportMetricsServiceRequest] = field(default_factory=list)
    logs: list[logs_service_pb2.ExportLogsServiceRequest] = field(default_factory=list)

    def span_names(self) -> list[str]:
        return sorted(
            span.name
            for request in self.traces
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        )

    def log_records(self) -> list[Any]:
        return [
            record
            for request in self.logs
            for resource in request.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]

    def metric_names(self) -> list[str]:
        return sorted(
            metric.name
            for request in self.metrics
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        )

    def points(self, metric: str) -> list[tuple[dict[str, Any], Any]]:
        """Attributes and data point of every series of a metric, as the last export has it."""
        found = [
            entry
            for resource in self.metrics[-1].resource_metrics
            for scope in resource.scope_metrics
            for entry in scope.metrics
            if entry.name == metric
        ]
        return [
            ({pair.key: _value(pair.value) for pair in point.attributes}, point)
            for entry in found
            for point in getattr(entry, str(entry.WhichOneof("data"))).data_points
        ]

    def resource(self) -> dict[str, str]:
        attributes = self.traces[0].resource_spans[0].resource.attributes
        return {pair.key: pair.value.string_value for pair in attributes}

    def wait_for_spans(self, count: int, seconds: float) -> list[str]:
        return _wait_for(self.span_names, count, seconds)

    def wait_for_metrics(self, count: int, seconds: float) -> list[str]:
        return _wait_for(self.metric_names, count, seconds)


def _wait_for(names: Callable[[], list[str]], count: int, seconds: float) -> list[str]:
    deadline = time.monotonic() + seconds
    while len(names()) < count and time.monotonic() < deadline:
        time.sleep(0.05)
    return names()


def _value(encoded: Any) -> Any:
    return getattr(encoded, encoded.WhichOneof("value"))


IPV4, IPV6 = "127.0.0.1", "[::1]"
"""Where a receiver may listen, as an address has it."""


class _HttpServer(ThreadingHTTPServer):
    """A server at an address of either family."""

    # Several processes that end together connect at once.
    request_queue_size = 64

    def __init__(self, host: str, handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if host == IPV6 else socket.AF_INET
        super().__init__((host.strip("[]"), 0), handler)


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], host: str = IPV4) -> Iterator[str]:
    """An HTTP server; yields its address."""
    server = _HttpServer(host, handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def grpc_receiver(host: str = IPV4) -> Iterator[Received]:
    server = grpc.server(ThreadPoolExecutor(2))
    received = Received(f"http://{host}:{server.add_insecure_port(f'{host}:0')}")

    class Traces(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request, context):  # noqa: N802 - gRPC's name
            received.traces.append(request)
            return trace_service_pb2.ExportTraceServiceResponse()

    class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
        def Export(self, request, context):  # noqa: N802 - gRPC's name
            received.metrics.append(request)
            return metrics_service_pb2.ExportMetricsServiceResponse()

    class Logs(logs_service_pb2_grpc.LogsServiceServicer):
        def Export(self, request, context):  # noqa: N802 - gRPC's name
            received.logs.append(request)
            return logs_service_pb2.ExportLogsServiceResponse()

    logs_service_pb2_grpc.add_LogsServiceServicer_to_server(Logs(), server)
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(), server)
    server.start()
    try:
        yield received
    finally:
        server.stop(None)


@contextmanager
def http_receiver(host: str = IPV4) -> Iterator[Received]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if encoding := self.headers["Content-Encoding"]:
                body = {"gzip": gzip.decompress, "deflate": zlib.decompress}[encoding](body)
            if self.path == "/v1/traces":
                received.traces.append(trace_service_pb2.ExportTraceServiceRequest.FromString(body))
            elif self.path == "/v1/metrics":
                received.metrics.append(metrics_service_pb2.ExportMetricsServiceRequest.FromString(body))
            elif self.path == "/v1/logs":
                received.logs.append(logs_service_pb2.ExportLogsServiceRequest.FromString(body))
            self.send_response(200 if self.path in ("/v1/traces", "/v1/metrics", "/v1/logs") else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(Handler, host) as endpoint:
        received = Received(endpoint)
        yield received


@contextmanager
def collector(behind: str, ports: tuple[int, int] | None = None) -> Iterator[tuple[str, str]]:
    """A rotel collector that forwards to the endpoint behind it; yields its own two, for gRPC and for HTTP."""
    program("libpython")
    with rotel("--exporter", "otlp", "--otlp-exporter-endpoint", behind, ports=ports) as endpoints:
        yield endpoints


@contextmanager
def refusing_endpoint(host: str = IPV4) -> Iterator[str]:
    """A closed port."""
    yield f"http://{host}:{free_port()}"


@contextmanager
def silent_endpoint() -> Iterator[str]:
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def answering(
    status: int = 200, body: bytes = b"", content_type: str = "application/x-protobuf", **headers: str
) -> Iterator[str]:
    """An HTTP server that answers every request alike."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            for name, value in {"Content-Type": content_type, "Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(Handler) as endpoint:
        yield endpoint


@contextmanager
def grpc_answering(
    code: grpc.StatusCode | None = None, words: str = "", *, rejected: int = 0, metrics: bool = True, key: str = ""
) -> Iterator[str]:
    """A gRPC receiver that refuses with a status, rejects a part, takes no metrics, or insists on an API key."""
    server = grpc.server(ThreadPoolExecutor(2))
    port = server.add_insecure_port("127.0.0.1:0")

    def refuse(context: grpc.ServicerContext) -> None:
        if code is not None and not (key and ("api-key", key) in context.invocation_metadata()):
            context.abort(code, words)

    class Traces(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request, context):  # noqa: N802 - gRPC's name
            refuse(context)
            partial = trace_service_pb2.ExportTracePartialSuccess(rejected_spans=rejected, error_message=words)
            return trace_service_pb2.ExportTraceServiceResponse(partial_success=partial if rejected else None)

    class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
        def Export(self, request, context):  # noqa: N802 - gRPC's name
            refuse(context)
            return metrics_service_pb2.ExportMetricsServiceResponse()

    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), server)
    if metrics:
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(), server)
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(None)


@contextmanager
def tls_port(folder: Path, host: str = IPV4, *, refuses_plain_text: bool = False) -> Iterator[int]:
    """A TLS port with a self-signed certificate that answers nothing beyond the handshake.

    Args:
        folder: for the certificate.
        host: that it listens on.
        refuses_plain_text: by status 400, as servers in Go and nginx do when the answer is not lost.
    """
    chain, key = folder / "chain.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-keyout", str(key), "-out", str(chain), "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                # A handshake begins with a record of type 22.
                if refuses_plain_text and connection.recv(1, socket.MSG_PEEK) != b"\x16":
                    connection.recv(65_536)
                    connection.sendall(
                        b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
                    )
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65_536):
                        pass
                    continue
                with context.wrap_socket(connection, server_side=True) as channel:
                    channel.recv(1)

    family = socket.AF_INET6 if host == IPV6 else socket.AF_INET
    with socket.create_server((host.strip("[]"), 0), family=family) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        yield int(listener.getsockname()[1])
