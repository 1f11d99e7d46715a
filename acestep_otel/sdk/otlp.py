"""The destination of each signal and its exporter, from the ``OTEL_*`` variables and the command line.

A signal is exported when an endpoint is configured for it, or when ``OTEL_TRACES_EXPORTER`` /
``OTEL_METRICS_EXPORTER`` is ``otlp``; ``none`` switches it off, even if an endpoint is set. Address, headers, timeout
and compression are resolved here and passed to the exporter, so that the displayed values are those in use.
Certificates are read by the exporter.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, get_args

from opentelemetry.sdk.metrics.export import MetricExporter
from opentelemetry.sdk.trace.export import SpanExporter

from acestep_otel.errors import SetupError
from acestep_otel.sdk.addresses import Address, parse_address
from acestep_otel.sdk.answers import Answers, Delivery, Signal
from acestep_otel.sdk.pairs import parse_headers
from acestep_otel.sdk.variables import is_true, milliseconds, variable

if TYPE_CHECKING:
    from opentelemetry.sdk._logs.export import LogRecordExporter

Protocol = Literal["grpc", "http/protobuf"]

TEMPORALITY: Final = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
HISTOGRAMS: Final = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"
PROTOCOLS: Final[tuple[Protocol, ...]] = get_args(Protocol)
DEFAULT_PROTOCOL: Final[Protocol] = "grpc"
"""The default of the OpenTelemetry distribution for Python."""
DEFAULT_ENDPOINTS: Final[Mapping[Protocol, str]] = {
    "grpc": "http://localhost:4317",
    "http/protobuf": "http://localhost:4318",
}
"""The default addresses of OTLP receivers."""

FLAG: Final = "--otlp-endpoint"
_BASE: Final = "OTEL_EXPORTER_OTLP"
_DEFAULT_TIMEOUT: Final = 10_000
_NO_LIMIT: Final = 86_400.0
"""Seconds used for no limit: in the specification, a timeout of 0 means no limit."""
_GRPC_NAME: Final = re.compile(r"(?!grpc-)[0-9a-z_.-]+(?<!-bin)")
_PATHS: Final = ("/v1/traces", "/v1/metrics", "/v1/logs")


@dataclass(frozen=True, slots=True)
class OtlpTarget:
    """The destination of one signal, and how it is sent.

    Attributes:
        signal: ``traces`` or ``metrics``.
        protocol: how it is sent.
        address: complete: with its scheme, and over HTTP with the signal's path.
        timeout: seconds for a batch, retries included.
        compression: ``none``, ``gzip`` or ``deflate``.
        source: flag or variable that contains the address.
        has_scheme: whether it was given with ``http://`` or ``https://``.
        headers: sent with every batch; they contain the user's keys and are never shown.
    """

    signal: Signal
    protocol: Protocol
    address: Address
    timeout: float = _DEFAULT_TIMEOUT / 1000
    compression: str = "none"
    source: str = FLAG
    has_scheme: bool = True
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        """The address as it may be shown."""
        return str(self.address)

    @property
    def tls(self) -> bool:
        """Whether TLS is used."""
        return self.address.scheme == "https"


def otlp_target(
    signal: Signal, *, endpoint: str | None = None, protocol: str | None = None, others: Collection[str] = ()
) -> OtlpTarget | None:
    """The destination of a signal; ``None`` if it is not sent.

    Args:
        signal: ``traces`` or ``metrics``.
        endpoint: endpoint of the command line; overrides the variables of the address.
        protocol: protocol of the command line; overrides the environment.
        others: values of ``OTEL_*_EXPORTER`` beside ``otlp`` that the program itself implements, such as
            ``prometheus``.

    Raises:
        SetupError: an endpoint, protocol, exporter or header that cannot be used.
    """
    if not _wanted(signal, others, named=endpoint is not None):
        return None
    spoken = _protocol(signal, protocol)
    source, text, is_base = _endpoint(signal, endpoint, spoken)
    address = parse_address(
        text, source, example=DEFAULT_ENDPOINTS[spoken], needs_scheme=spoken != "grpc" or source == FLAG
    )
    return OtlpTarget(
        signal=signal,
        protocol=spoken,
        address=_complete(signal, spoken, address, source, is_base=is_base),
        timeout=(milliseconds(_variable(signal, "TIMEOUT"), _DEFAULT_TIMEOUT) / 1000) or _NO_LIMIT,
        compression=(variable(_variable(signal, "COMPRESSION")) or "none").lower(),
        source=source,
        has_scheme=address.scheme is not None,
        headers=_headers(signal, spoken, address),
    )


def logs_target() -> OtlpTarget | None:
    """The destination of log records; ``None`` unless ``OTEL_LOGS_EXPORTER`` is ``otlp``: an endpoint alone sends none.

    Raises:
        SetupError: an exporter, endpoint, protocol or header that cannot be used.
    """
    return None if variable("OTEL_LOGS_EXPORTER") is None else otlp_target("logs")


def default_target(signal: Signal, protocol: str | None = None) -> OtlpTarget:
    """The default address of a receiver on this machine, whatever the environment names.

    Raises:
        SetupError: a protocol or header that cannot be used.
    """
    spoken = _protocol(signal, protocol)
    address = parse_address(DEFAULT_ENDPOINTS[spoken], FLAG, example=DEFAULT_ENDPOINTS[spoken])
    return OtlpTarget(
        signal,
        spoken,
        _complete(signal, spoken, address, FLAG, is_base=True),
        headers=_headers(signal, spoken, address),
    )


def _wanted(signal: Signal, others: Collection[str], *, named: bool) -> bool:
    name = f"OTEL_{signal.upper()}_EXPORTER"
    chosen = {word.strip().lower() for word in os.environ.get(name, "").split(",")} - {""}
    if unknown := chosen - {"otlp", "none", *others}:
        supported = " or ".join(("otlp", *sorted(others), "none"))
        raise SetupError(f"{name}={sorted(unknown)[0]!r} is not supported: choose {supported}")
    if chosen:
        return "otlp" in chosen
    return named or variable(f"{_BASE}_ENDPOINT") is not None or variable(_of(signal, "ENDPOINT")) is not None


def _of(signal: Signal, word: str) -> str:
    return f"{_BASE}_{signal.upper()}_{word}"


def _variable(signal: Signal, word: str) -> str:
    """The variable that decides: the signal's own if it is set, else that of all signals."""
    own = _of(signal, word)
    return own if variable(own) is not None else f"{_BASE}_{word}"


def _protocol(signal: Signal, given: str | None) -> Protocol:
    name = "--otlp-protocol" if given else _variable(signal, "PROTOCOL")
    found = given or variable(name) or DEFAULT_PROTOCOL
    for protocol in PROTOCOLS:
        if found.lower() == protocol:
            return protocol
    raise SetupError(f"{name}={found[:60]!r} is not supported: choose {' or '.join(PROTOCOLS)}")


def _endpoint(signal: Signal, given: str | None, protocol: Protocol) -> tuple[str, str, bool]:
    """The source of the address, the address, and whether it is a base to which HTTP adds the signal's path."""
    if given is not None:
        return FLAG, given, True
    if (own := variable(_of(signal, "ENDPOINT"))) is not None:
        return _of(signal, "ENDPOINT"), own, False
    return f"{_BASE}_ENDPOINT", variable(f"{_BASE}_ENDPOINT") or DEFAULT_ENDPOINTS[protocol], True


def _complete(signal: Signal, protocol: Protocol, address: Address, source: str, *, is_base: bool) -> Address:
    path = address.path.rstrip("/")
    # Under OpenTelemetry's rules a base may have any path; these are paths of a signal.
    if path.endswith(_PATHS) and (is_base or protocol == "grpc"):
        base = f"{address.scheme}://{address.authority}{path.removesuffix(path[path.rindex('/v1/') :])}"
        what = "over gRPC an address has no path" if protocol == "grpc" else "that is the address of one signal"
        raise SetupError(f"{source} {str(address)!r}: {what}: give {base}{_OVER_HTTP if protocol == 'grpc' else ''}")
    if protocol == "grpc":
        if path or address.query:
            raise SetupError(f"{source} {str(address)!r}: over gRPC an address has no path{_OVER_HTTP}")
        insecure = variable(_variable(signal, "INSECURE"))
        scheme = address.scheme or ("http" if (insecure or "").lower() == "true" else "https")
        return Address(scheme, address.host, address.port or (443 if scheme == "https" else 80))
    if is_base and address.query:
        raise SetupError(f"{source} {str(address)!r}: a base has no query: set {_of(signal, 'ENDPOINT')}")
    path = f"{path}/v1/{signal}" if is_base else address.path or "/"
    return Address(address.scheme, address.host, address.port, path, address.query)


_OVER_HTTP: Final = ", or choose http/protobuf (OTEL_EXPORTER_OTLP_PROTOCOL, --otlp-protocol)"


def _headers(signal: Signal, protocol: Protocol, address: Address) -> Mapping[str, str]:
    name = _variable(signal, "HEADERS")
    headers = parse_headers(name, variable(name) or "")
    if address.credentials is not None and "authorization" not in headers:
        user, password = address.credentials
        headers["authorization"] = f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"
    if protocol == "grpc":
        for header in headers:
            if not _GRPC_NAME.fullmatch(header):
                raise SetupError(
                    f"{name}: {header!r} cannot be sent over gRPC: only letters, digits, _, - and . are allowed"
                )
    return headers


def credentials_variable(signal: Signal) -> tuple[str, bool]:
    """The variable of a signal's headers, and whether it is set; its value is never shown."""
    name = _variable(signal, "HEADERS")
    return name, variable(name) is not None


def differences_caveat() -> str | None:
    """A warning if metrics are sent as deltas; ``None`` if they are cumulative."""
    chosen = (variable(TEMPORALITY) or "").lower()
    if chosen not in ("delta", "lowmemory"):
        return None
    return (
        f"{TEMPORALITY}={chosen}: metrics are sent as deltas, which the store must accumulate; otherwise it drops them "
        "(Prometheus: --enable-feature=otlp-deltatocumulative, as docker-compose.yml has it)"
    )


def histogram_caveat() -> str | None:
    """A warning if histograms have no fixed bucket bounds; otherwise ``None``."""
    chosen = (variable(HISTOGRAMS) or "").lower()
    if chosen != "base2_exponential_bucket_histogram":
        return None
    return f"{HISTOGRAMS}={chosen}: the dashboards query buckets with fixed bounds, so their duration panels are empty"


# The exporters are imported only if they are selected: importing gRPC alone takes a tenth of a second.
def span_exporter(target: OtlpTarget, answers: Answers | None = None) -> SpanExporter:
    """The exporter of spans to a target.

    Args:
        target: where they go.
        answers: collects what the receiver says; made by ``answers_of``.

    Raises:
        SetupError: the environment configures it wrongly.
    """
    try:
        if target.protocol == "grpc":
            from acestep_otel.sdk.grpc_exporters import GrpcSpans

            return GrpcSpans(target, answers or answers_of(target))
        from acestep_otel.sdk.http_exporters import HttpSpans

        return HttpSpans(target, answers or answers_of(target))
    except (ValueError, RuntimeError, ImportError) as error:
        raise SetupError(f"cannot set up the OTLP exporter of traces: {error}") from error


def metric_exporter(target: OtlpTarget, answers: Answers | None = None) -> MetricExporter:
    """The exporter of metrics to a target.

    Args:
        target: where they go.
        answers: collects what the receiver says; made by ``answers_of``.

    Raises:
        SetupError: the environment configures it wrongly.
    """
    try:
        if target.protocol == "grpc":
            from acestep_otel.sdk.grpc_exporters import GrpcMetrics

            return GrpcMetrics(target, answers or answers_of(target))
        from acestep_otel.sdk.http_exporters import HttpMetrics

        return HttpMetrics(target, answers or answers_of(target))
    except (ValueError, RuntimeError, ImportError) as error:
        raise SetupError(f"cannot set up the OTLP exporter of metrics: {error}") from error


def log_exporter(target: OtlpTarget) -> LogRecordExporter:
    """The exporter of log records to a target.

    Args:
        target: where they go.

    Raises:
        SetupError: the environment configures it wrongly.
    """
    try:
        if target.protocol == "grpc":
            from acestep_otel.sdk.grpc_exporters import grpc_logs

            return grpc_logs(target)
        from acestep_otel.sdk.http_exporters import http_logs

        return http_logs(target)
    except (ValueError, RuntimeError, ImportError) as error:
        raise SetupError(f"cannot set up the OTLP exporter of logs: {error}") from error


def answers_of(target: OtlpTarget, report: Callable[[Delivery], None] | None = None) -> Answers:
    """Collects the answers of a target's exporter; no report contains the values of its headers.

    Args:
        target: where it sends.
        report: called with the outcome of every batch.
    """
    secrets = [word for value in target.headers.values() for word in (value, *value.split())]
    return Answers(target.signal, secrets, report)


def disabled() -> bool:
    """Whether ``OTEL_SDK_DISABLED`` is set."""
    return is_true("OTEL_SDK_DISABLED")
