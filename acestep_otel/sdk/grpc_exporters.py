"""The SDK's exporters over gRPC, whose answers are evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import grpc
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from acestep_otel.sdk.answers import Answer, Answers, read_failure
from acestep_otel.sdk.data_points import count_data_points
from acestep_otel.sdk.otlp import OtlpTarget

if TYPE_CHECKING:
    from opentelemetry.sdk._logs.export import LogRecordExporter

_COMPRESSIONS: Final = {
    "none": grpc.Compression.NoCompression,
    "gzip": grpc.Compression.Gzip,
    "deflate": grpc.Compression.Deflate,
}


class GrpcSpans(OTLPSpanExporter):
    """Spans over gRPC."""

    def __init__(self, target: OtlpTarget, answers: Answers) -> None:
        self.answers = answers
        self._tls = target.tls
        super().__init__(**_arguments(target))

    # The one place where the SDK creates its client, at the start and again after a lost connection.
    def _initialize_channel_and_stub(self) -> None:
        super()._initialize_channel_and_stub()  # type: ignore[no-untyped-call]
        self._client: Any = _Listening(self._client, self.answers, tls=self._tls)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch; the answer of the receiver decides whether it succeeded."""
        self.answers.begin()
        succeeded = super().export(spans) is SpanExportResult.SUCCESS
        arrived = self.answers.end(len(spans), succeeded=succeeded)
        return SpanExportResult.SUCCESS if arrived else SpanExportResult.FAILURE


class GrpcMetrics(OTLPMetricExporter):
    """Metrics over gRPC."""

    def __init__(self, target: OtlpTarget, answers: Answers) -> None:
        self.answers = answers
        self._tls = target.tls
        super().__init__(**_arguments(target))

    def _initialize_channel_and_stub(self) -> None:
        super()._initialize_channel_and_stub()  # type: ignore[no-untyped-call]
        self._client: Any = _Listening(self._client, self.answers, tls=self._tls)

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        """Send a batch; the answer of the receiver decides whether it succeeded."""
        self.answers.begin()
        succeeded = super().export(metrics_data, timeout_millis, **kwargs) is MetricExportResult.SUCCESS
        arrived = self.answers.end(count_data_points(metrics_data), succeeded=succeeded)
        return MetricExportResult.SUCCESS if arrived else MetricExportResult.FAILURE


def grpc_logs(target: OtlpTarget) -> LogRecordExporter:
    """Log records over gRPC, as the SDK sends them: their answers are not evaluated."""
    # The SDK's logs read the resource from the environment while they are imported.
    from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter

    return OTLPLogExporter(**_arguments(target))


def _arguments(target: OtlpTarget) -> dict[str, Any]:
    return {
        "endpoint": target.address.url,
        "insecure": not target.tls,
        "headers": dict(target.headers),
        "timeout": target.timeout,
        "compression": _COMPRESSIONS[target.compression],
    }


class _Listening:
    """A client of the receiver's service that notes each answer."""

    def __init__(self, client: Any, answers: Answers, *, tls: bool) -> None:
        self._client = client
        self._answers = answers
        self._tls = tls

    def Export(self, **call: Any) -> Any:  # noqa: N802 - the service's own name
        try:
            response = self._client.Export(**call)
        except grpc.RpcError as error:
            status = error.code().name if isinstance(error, grpc.Call) else "UNKNOWN"
            words = error.details() if isinstance(error, grpc.Call) else str(error)
            self._answers.hear(read_failure(words or "", tls=self._tls, status=status))
            raise
        partial = response.partial_success
        rejected = getattr(partial, "rejected_spans", 0) or getattr(partial, "rejected_data_points", 0)
        self._answers.hear(
            Answer("rejected" if rejected > 0 else "accepted", "OK", partial.error_message, max(0, rejected))
        )
        return response
