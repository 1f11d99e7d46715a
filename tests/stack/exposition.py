"""Series as a collector delivers them, made from OTLP and served to be scraped: for where its program is not.

Names (``TRANSLATIONS``), labels from the resource, exemplars and values are those of the real ones, which
``tests/stack/real`` runs.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import accumulate
from typing import Any

from tests.receivers import Received

CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"

# instrument, kind, unit -> name in Prometheus, as seen with the collector 0.156.
TRANSLATIONS = {
    ("gen_ai.server.time_to_first_token", "histogram", "s"): "gen_ai_server_time_to_first_token_seconds",
    ("acestep.dit.step.duration", "histogram", "s"): "acestep_dit_step_duration_seconds",
    ("acestep.gpu.memory.peak", "gauge", "By"): "acestep_gpu_memory_peak_bytes",
    ("gen_ai.client.token.usage", "histogram", "{token}"): "gen_ai_client_token_usage",
    ("gen_ai.client.operation.duration", "histogram", "s"): "gen_ai_client_operation_duration_seconds",
    ("acestep.requests", "counter", "{request}"): "acestep_requests_total",
    ("acestep.errors.total", "counter", "{error}"): "acestep_errors_total",
    ("acestep.audio.bytes", "counter", "By"): "acestep_audio_bytes_total",
    ("acestep.rtf", "gauge", "1"): "acestep_rtf_ratio",
    ("acestep.requests.active", "up_down_counter", "{request}"): "acestep_requests_active",
}

_UNITS = {
    "s": "seconds",
    "By": "bytes",
    "1": "ratio",
    "J": "joules",
    "By/s": "bytes_per_second",
    "{operation}/s": "per_second",
}


def translated(name: str, kind: str, unit: str) -> str:
    """The name of an instrument's series; ``_bucket``, ``_sum`` and ``_count`` of a histogram come after it."""
    found = re.sub(r"[^a-zA-Z0-9_:]", "_", name).removesuffix("_total")
    suffix = "" if unit.startswith("{") and unit not in _UNITS else f"_{_UNITS[unit]}"
    if suffix and not found.endswith(suffix):
        found += suffix
    return f"{found}_total" if kind == "counter" else found


Labels = tuple[tuple[str, str], ...]


@dataclass
class Page:
    """What is served.

    Attributes:
        points: newest data point of each series, by its family and its labels.
        lost: spans that the store behind the collector did not take.
    """

    received: Received
    points: dict[tuple[str, str, Labels], Any] = field(default_factory=dict)
    infos: dict[str, Labels] = field(default_factory=dict)
    lost: int = 0
    _taken: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def render(self) -> str:
        """The page in the OpenMetrics format."""
        with self._lock:
            self._take()
            families: dict[tuple[str, str], list[tuple[Labels, Any]]] = {}
            for (name, kind, labels), point in sorted(self.points.items(), key=lambda item: item[0]):
                families.setdefault((name, kind), []).append((labels, point))
            lines = [line for (name, kind), series in families.items() for line in _family(name, kind, series)]
            lines += ["# TYPE target info", *(f"target_info{_braces(labels)} 1" for labels in self.infos.values())]
        return "\n".join([*lines, "# EOF", ""])

    def render_own(self) -> str:
        """The collector's figures about itself."""
        accepted = sum(
            len(scope.spans)
            for request in list(self.received.traces)
            for resource in request.resource_spans
            for scope in resource.scope_spans
        )
        figures = own_figures(accepted, self.lost)
        return "\n".join([*(f"{name}{labels} {value}" for name, (labels, value) in figures.items()), "# EOF", ""])

    def expire(self, *jobs: str) -> None:
        """Forget what these processes sent, as the exporter does some minutes after their end."""
        with self._lock:
            self._take()
            for key in [key for key in self.points if dict(key[2])["job"] in jobs]:
                del self.points[key]
            for job in jobs:
                self.infos.pop(job, None)

    def _take(self) -> None:
        requests = list(self.received.metrics)
        for request in requests[self._taken :]:
            for resource in request.resource_metrics:
                attributes = {pair.key: _text(pair.value) for pair in resource.resource.attributes}
                identity = {"job": attributes["service.name"], "instance": attributes["service.instance.id"]}
                self.infos[identity["job"]] = _labels({**attributes, **identity})
                # A label of every series, by Prometheus' configuration.
                identity["host_name"] = attributes["host.name"]
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:
                        self._metric(metric, identity)
        self._taken = len(requests)

    def _metric(self, metric: Any, identity: dict[str, str]) -> None:
        data = getattr(metric, shape := metric.WhichOneof("data"))
        if shape != "gauge":
            assert data.aggregation_temporality == 2, "the exporter takes cumulative values"
        kind = shape if shape != "sum" else "counter" if data.is_monotonic else "up_down_counter"
        name = translated(metric.name, kind, metric.unit)
        for point in data.data_points:
            own = {pair.key: _text(pair.value) for pair in point.attributes}
            self.points[name, kind, _labels({**own, **identity})] = point


def own_figures(accepted: int, lost: int) -> dict[str, tuple[str, int]]:
    """What a collector says of itself: the series of a failure is not there before the first one."""
    exporter, receiver = '{exporter="otlp_grpc/jaeger"}', '{receiver="otlp",transport="grpc"}'
    figures = {
        "otelcol_process_uptime": ("", 5000),
        "otelcol_receiver_accepted_spans": (receiver, accepted),
        "otelcol_receiver_refused_spans": (receiver, 0),
        "otelcol_receiver_refused_metric_points": (receiver, 0),
        "otelcol_exporter_sent_spans": (exporter, accepted - lost),
        "otelcol_exporter_queue_size": (exporter, 0),
        "otelcol_exporter_queue_capacity": (exporter, 1000),
    }
    return figures | ({"otelcol_exporter_send_failed_spans": (exporter, lost)} if lost else {})


def _family(name: str, kind: str, series: Iterable[tuple[Labels, Any]]) -> Iterator[str]:
    if kind == "histogram":
        yield f"# TYPE {name} histogram"
        for labels, point in series:
            yield from _histogram(name, labels, point)
        return
    # OpenMetrics names a counter's family without the suffix of its sample.
    yield f"# TYPE {name.removesuffix('_total')} {'counter' if kind == 'counter' else 'gauge'}"
    for labels, point in series:
        value = point.as_int if point.WhichOneof("value") == "as_int" else point.as_double
        yield f"{name}{_braces(labels)} {value}{_exemplar(point.exemplars) if kind == 'counter' else ''}"


def _histogram(name: str, labels: Labels, point: Any) -> Iterator[str]:
    bounds = [*map(float, point.explicit_bounds), float("inf")]
    lower = float("-inf")
    for bound, count in zip(bounds, accumulate(point.bucket_counts), strict=True):
        inside = [exemplar for exemplar in point.exemplars if lower < exemplar.as_double <= bound]
        bucket = _braces((*labels, ("le", "+Inf" if bound == float("inf") else f"{bound}")))
        yield f"{name}_bucket{bucket} {count}{_exemplar(inside)}"
        lower = bound
    yield f"{name}_sum{_braces(labels)} {point.sum}"
    yield f"{name}_count{_braces(labels)} {point.count}"


def _exemplar(exemplars: Any) -> str:
    if not exemplars:
        return ""
    newest = max(exemplars, key=lambda exemplar: exemplar.time_unix_nano)
    value = newest.as_int if newest.WhichOneof("value") == "as_int" else newest.as_double
    span = f'trace_id="{newest.trace_id.hex()}",span_id="{newest.span_id.hex()}"'
    return f" # {{{span}}} {value} {newest.time_unix_nano / 1e9}"


def _labels(attributes: dict[str, str]) -> Labels:
    return tuple(sorted((re.sub(r"[^a-zA-Z0-9_]", "_", name), value) for name, value in attributes.items()))


def _braces(labels: Labels) -> str:
    return "{" + ",".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in labels) + "}"


def _text(value: Any) -> str:
    found = getattr(value, value.WhichOneof("value"))
    if isinstance(found, bool):
        return str(found).lower()
    # The collector writes 30.0 as 30.
    return f"{found:g}" if isinstance(found, float) else str(found)


@contextmanager
def served(page: Page) -> Iterator[str]:
    """Serve the page and the collector's own; yields host and port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = (page.render_own() if self.path == "/own" else page.render()).encode()
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
