"""Which OTLP exporters a run gets: decided from the standard ``OTEL_*`` variables and the command line.

A signal is exported when an endpoint is configured for it, or when ``OTEL_TRACES_EXPORTER`` /
``OTEL_METRICS_EXPORTER`` says ``otlp``; ``none`` switches it off. What the exporters themselves read from the
environment (headers, timeout, certificates, compression) stays theirs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args
from urllib.parse import urlsplit

from opentelemetry.sdk.metrics.export import MetricExporter
from opentelemetry.sdk.trace.export import SpanExporter

from acestep_otel.errors import SetupError

Signal = Literal["traces", "metrics"]
Protocol = Literal["grpc", "http/protobuf"]

TEMPORALITY: Final = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
HISTOGRAMS: Final = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"
PROTOCOLS: Final[tuple[Protocol, ...]] = get_args(Protocol)
DEFAULT_PROTOCOL: Final[Protocol] = "grpc"
"""What the OpenTelemetry distribution for Python takes when nothing is said."""


@dataclass(frozen=True, slots=True)
class OtlpTarget:
    """Where one signal goes.

    Attributes:
        protocol: how it is sent.
        endpoint: base URL given on the command line, or ``None`` when the exporter takes it from the environment.
    """

    protocol: Protocol
    endpoint: str | None = None

    def url(self, signal: Signal) -> str | None:
        """What the exporter's ``endpoint`` argument takes: over HTTP that is the signal's own path."""
        if self.endpoint is None or self.protocol == "grpc":
            return self.endpoint
        return f"{self.endpoint.rstrip('/')}/v1/{signal}"

    @property
    def insecure(self) -> bool | None:
        """Whether gRPC goes without TLS; ``None`` leaves that to the environment."""
        return None if self.endpoint is None else urlsplit(self.endpoint).scheme == "http"


def otlp_target(signal: Signal, *, endpoint: str | None = None, protocol: str | None = None) -> OtlpTarget | None:
    """Where a signal goes, or ``None`` when it goes nowhere.

    Args:
        signal: ``traces`` or ``metrics``.
        endpoint: of the command line; wins over the environment.
        protocol: of the command line; wins over the environment.

    Raises:
        SetupError: an endpoint, protocol or exporter that does not exist.
    """
    if endpoint is not None:
        address = urlsplit(endpoint)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise SetupError(f"OTLP endpoint {endpoint!r} is not a URL such as http://localhost:4317")
    elif not _wanted(signal):
        return None
    return OtlpTarget(_protocol(signal, protocol), endpoint)


def _wanted(signal: Signal) -> bool:
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    chosen = {word.strip() for word in os.environ.get(variable, "").split(",")} - {""}
    if unknown := chosen - {"otlp", "none"}:
        raise SetupError(f"{variable}={sorted(unknown)[0]!r} is not supported: choose otlp or none")
    if chosen:
        return "otlp" in chosen
    return any(
        os.environ.get(name)
        for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT")
    )


def _protocol(signal: Signal, given: str | None) -> Protocol:
    found = (
        given
        or os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL")
        or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or DEFAULT_PROTOCOL
    )
    for protocol in PROTOCOLS:
        if found == protocol:
            return protocol
    raise SetupError(f"OTLP protocol {found!r} is not supported: choose {' or '.join(PROTOCOLS)}")


def signal_variable(signal: Signal, setting: str) -> tuple[str, str | None]:
    """The variable of an exporter's setting that counts, and its value.

    Args:
        signal: ``traces`` or ``metrics``, whose own variable wins.
        setting: for example ``CERTIFICATE``.

    Returns:
        Name and value; the general name and ``None`` where neither is set.
    """
    own, general = f"OTEL_EXPORTER_OTLP_{signal.upper()}_{setting}", f"OTEL_EXPORTER_OTLP_{setting}"
    name = own if os.environ.get(own) else general
    return name, os.environ.get(name) or None


def require_certificates(signal: Signal) -> None:
    """Refuse a certificate's file that is not there: the exporter would log a traceback and go on without it.

    Raises:
        SetupError: naming the variable and the file.
    """
    for setting in ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY"):
        variable, path = signal_variable(signal, setting)
        if path is not None and not Path(path).is_file():
            raise SetupError(f"{variable}: there is no file {path!r}")


def differences_caveat() -> str | None:
    """What to know where metrics are sent as differences; ``None`` where they are sent as totals."""
    chosen = os.environ.get(TEMPORALITY, "").strip().lower()
    if chosen not in ("delta", "lowmemory"):
        return None
    return (
        f"{TEMPORALITY}={chosen}: metrics are sent as differences, and the store must add them up, else it drops them "
        "(Prometheus: --enable-feature=otlp-deltatocumulative, as docker-compose.yml has it)"
    )


def histogram_caveat() -> str | None:
    """What to know where histograms have no buckets of fixed bounds; ``None`` where they have."""
    chosen = os.environ.get(HISTOGRAMS, "").strip().lower()
    if chosen != "base2_exponential_bucket_histogram":
        return None
    return (
        f"{HISTOGRAMS}={chosen}: the dashboards ask for buckets of fixed bounds, so their panels of durations are empty"
    )


# The exporters are imported where they are chosen: gRPC alone takes a tenth of a second that a quiet run saves.
def span_exporter(target: OtlpTarget) -> SpanExporter:
    """The exporter of spans to a target.

    Raises:
        SetupError: the environment configures it wrongly.
    """
    require_certificates("traces")
    try:
        if target.protocol == "grpc":
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter

            return GrpcSpanExporter(endpoint=target.url("traces"), insecure=target.insecure)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpanExporter

        return HttpSpanExporter(endpoint=target.url("traces"))
    except ValueError as error:
        raise SetupError(f"cannot set up the OTLP exporter of traces: {error}") from error


def metric_exporter(target: OtlpTarget) -> MetricExporter:
    """The exporter of metrics to a target.

    Raises:
        SetupError: the environment configures it wrongly.
    """
    require_certificates("metrics")
    try:
        if target.protocol == "grpc":
            from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetricExporter

            return GrpcMetricExporter(endpoint=target.url("metrics"), insecure=target.insecure)
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetricExporter

        return HttpMetricExporter(endpoint=target.url("metrics"))
    except ValueError as error:
        raise SetupError(f"cannot set up the OTLP exporter of metrics: {error}") from error
