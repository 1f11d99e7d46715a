"""The SDK's exporters over HTTP, whose answers are evaluated."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import requests
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from acestep_otel.sdk.answers import LARGEST_ANSWER, Answers, Signal, read_failure, read_http_answer
from acestep_otel.sdk.data_points import count_data_points
from acestep_otel.sdk.otlp import OtlpTarget

if TYPE_CHECKING:
    from opentelemetry.sdk._logs.export import LogRecordExporter

_COMPRESSIONS: Final = {
    "none": Compression.NoCompression,
    "gzip": Compression.Gzip,
    "deflate": Compression.Deflate,
}


class HttpSpans(OTLPSpanExporter):
    """Spans over HTTP."""

    def __init__(self, target: OtlpTarget, answers: Answers) -> None:
        self.answers = answers
        super().__init__(**_arguments(target, answers))

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch; the answer of the receiver decides whether it succeeded."""
        self.answers.begin()
        succeeded = super().export(spans) is SpanExportResult.SUCCESS
        arrived = self.answers.end(len(spans), succeeded=succeeded)
        return SpanExportResult.SUCCESS if arrived else SpanExportResult.FAILURE


class HttpMetrics(OTLPMetricExporter):
    """Metrics over HTTP."""

    def __init__(self, target: OtlpTarget, answers: Answers) -> None:
        self.answers = answers
        super().__init__(**_arguments(target, answers))

    def export(
        self, metrics_data: MetricsData, timeout_millis: float | None = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        """Send a batch; the answer of the receiver decides whether it succeeded."""
        self.answers.begin()
        succeeded = super().export(metrics_data, timeout_millis, **kwargs) is MetricExportResult.SUCCESS
        arrived = self.answers.end(count_data_points(metrics_data), succeeded=succeeded)
        return MetricExportResult.SUCCESS if arrived else MetricExportResult.FAILURE


def http_logs(target: OtlpTarget) -> LogRecordExporter:
    """Log records over HTTP, as the SDK sends them: their answers are not evaluated."""
    # The SDK's logs read the resource from the environment while they are imported.
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter

    return OTLPLogExporter(
        endpoint=target.address.url,
        headers=dict(target.headers),
        timeout=target.timeout,
        compression=_COMPRESSIONS[target.compression],
    )


def _arguments(target: OtlpTarget, answers: Answers) -> dict[str, Any]:
    return {
        "endpoint": target.address.url,
        "headers": dict(target.headers),
        "timeout": target.timeout,
        "compression": _COMPRESSIONS[target.compression],
        "session": None if _has_provider(target.signal) else _Session(target.signal, answers, tls=target.tls),
    }


def _has_provider(signal: Signal) -> bool:
    """Whether another package creates the session; the SDK's own result is used then."""
    names = ("OTEL_PYTHON_EXPORTER_OTLP_HTTP", f"OTEL_PYTHON_EXPORTER_OTLP_HTTP_{signal.upper()}")
    return any(os.environ.get(f"{name}_CREDENTIAL_PROVIDER") for name in names)


class _Session(requests.Session):
    """A session that reads only the beginning of each answer."""

    def __init__(self, signal: Signal, answers: Answers, *, tls: bool) -> None:
        super().__init__()
        # Its own headers alone: ~/.netrc would add others.
        self.auth = lambda request: request
        self._signal = signal
        self._answers = answers
        self._tls = tls

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        """Use the exporter's own certificate authority, which ``REQUESTS_CA_BUNDLE`` would replace."""
        own = self.verify if verify is None and self.verify is not True else verify
        return super().merge_environment_settings(url, proxies, stream, own, cert)

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        """Send, and note the answer or why there is none."""
        try:
            response = super().request(*args, **(kwargs | {"stream": True}))
            with response:
                body = response.raw.read(LARGEST_ANSWER, decode_content=True)
        except Exception as error:
            self._answers.hear(read_failure(f"{type(error).__name__} {error}", tls=self._tls))
            raise
        headers = response.headers
        self._answers.hear(
            read_http_answer(
                self._signal,
                response.status_code,
                response.reason or "",
                headers.get("content-type") or "",
                headers.get("location") or "",
                body,
            )
        )
        return response
