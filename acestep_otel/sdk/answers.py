"""Responses of OTLP receivers, read directly instead of from the exporter's result or its log.

The SDK's exporters report an HTML page, a redirect to a login and a rejected batch as success. Here every response is
evaluated: the status, the response message of the protocol and its ``partial_success``.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal
from urllib.parse import urlsplit

Signal = Literal["traces", "metrics", "logs"]
Cause = Literal[
    "accepted", "rejected", "redirected", "foreign", "status", "no-tls-there", "tls-there", "certificate",
    "other-protocol", "unreachable", "timeout", "failed",
]  # fmt: skip
"""The outcome of a request.

``accepted``: complete. ``rejected``: the receiver rejected a part (``partial_success``). ``redirected``: it names
another address. ``foreign``: it responds, but not as an OTLP receiver does. ``status``: it refuses, with a status.
``no-tls-there``, ``tls-there``: one side uses TLS and the other does not. ``certificate``: its certificate is not
trusted. ``other-protocol``: it expects HTTP where gRPC was used, or the reverse. ``unreachable``, ``timeout``: there
is no answer. ``failed``: none of these.
"""

LARGEST_ANSWER: Final = 65_536
"""Bytes of an answer that are read."""
_LONGEST: Final = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a receiver, or why there is none.

    Attributes:
        cause: the outcome of the request.
        status: HTTP status with its phrase, or the name of gRPC's status code; ``""`` without an answer.
        words: message of the receiver or of the connection, one line.
        rejected: number of items that it rejected.
    """

    cause: Cause
    status: str = ""
    words: str = ""
    rejected: int = 0

    def __str__(self) -> str:
        """The answer as one line."""
        return ": ".join(part for part in (_SAYS.get(self.cause, ""), self.status, one_line(self.words)) if part)


_SAYS: Final[dict[Cause, str]] = {
    "accepted": "accepted",
    "redirected": "it redirects to another address",
    "foreign": "it responds, but not as an OTLP receiver",
    "no-tls-there": "TLS was used, but the port does not support it",
    "tls-there": "the port requires TLS, which was not used",
    "certificate": "its certificate is not trusted",
    "other-protocol": "the port does not support this protocol",
    "unreachable": "no service responds there",
    "timeout": "no answer in time",
}


@dataclass(frozen=True, slots=True)
class Delivery:
    """The outcome of one batch.

    Attributes:
        signal: ``traces`` or ``metrics``.
        items: spans or data points in it.
        lost: those that did not arrive.
        answer: the last one; what came before it was retried.
    """

    signal: Signal
    items: int
    lost: int
    answer: Answer


class Answers:
    """Collects the answers of one exporter and reports each batch.

    Attributes:
        last: the answer to the last request; ``None`` before there is one.
    """

    def __init__(
        self, signal: Signal, secrets: Iterable[str] = (), report: Callable[[Delivery], None] | None = None
    ) -> None:
        """Start without an answer.

        Args:
            signal: what is sent.
            secrets: texts that no report may contain: values of headers and passwords.
            report: called with every batch.
        """
        self._signal = signal
        self._secrets = tuple(secret for secret in secrets if len(secret) > 2)
        self._report = report
        self._heard = threading.Event()
        self.last: Answer | None = None

    def begin(self) -> None:
        """A batch is about to be sent."""
        self.last = None
        self._heard.clear()

    def hear(self, answer: Answer) -> None:
        """Note an answer."""
        words = answer.words
        for secret in self._secrets:
            words = words.replace(secret, "***")
        self.last = replace(answer, words=one_line(words))
        self._heard.set()

    def wait(self, seconds: float) -> Answer | None:
        """The first answer to the batch, if it comes in time."""
        self._heard.wait(seconds)
        return self.last

    def end(self, items: int, *, succeeded: bool) -> bool:
        """The exporter is done with the batch.

        Args:
            items: spans or data points in it.
            succeeded: the exporter's result.

        Returns:
            Whether all of it arrived.
        """
        answer = self.last or Answer("accepted" if succeeded else "failed")
        lost = {"accepted": 0 if succeeded else items, "rejected": min(answer.rejected, items)}.get(answer.cause, items)
        if self._report is not None:
            self._report(Delivery(self._signal, items, lost, answer))
        return lost == 0


def one_line(text: str) -> str:
    """A foreign text as one line: printable, without line breaks, truncated."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * _LONGEST]).split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


def read_http_answer(signal: Signal, status: int, phrase: str, content_type: str, location: str, body: bytes) -> Answer:
    """Interpret an answer over HTTP.

    Args:
        signal: what was sent.
        status: of the answer.
        phrase: its reason phrase.
        content_type: the header, or ``""``.
        location: the header, or ``""``.
        body: the first ``LARGEST_ANSWER`` bytes.

    Source: OTLP specification, "OTLP/HTTP Response".
    """
    shown = f"{status} {one_line(phrase)}".strip()
    kind = content_type.partition(";")[0].strip().lower()
    if 300 <= status < 400:
        return Answer("redirected", shown, f"to {_place(location)}" if location else "")
    if not 200 <= status < 300:
        return Answer("status", shown, _words(kind, body))
    if kind == "application/json":
        partial = _partial_json(signal, body)
    elif kind in ("text/html", "application/xhtml+xml"):
        partial = None
    else:
        partial = _partial(signal, body)
    if partial is None:
        return Answer("foreign", shown, f"with {kind or 'data'} that is not a response of the protocol")
    rejected, words = partial
    return Answer("rejected" if rejected else "accepted", shown, words, rejected)


def _partial(signal: Signal, body: bytes) -> tuple[int, str] | None:
    """Rejected items and the message of an encoded response; ``None`` when it is none."""
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    try:
        if signal == "traces":
            spans = ExportTraceServiceResponse.FromString(body).partial_success
            return max(0, spans.rejected_spans), spans.error_message
        points = ExportMetricsServiceResponse.FromString(body).partial_success
        return max(0, points.rejected_data_points), points.error_message
    except DecodeError:
        return None


def _partial_json(signal: Signal, body: bytes) -> tuple[int, str] | None:
    try:
        partial = (json.loads(body) if body.strip() else {}).get("partialSuccess") or {}
        rejected = int(partial.get("rejectedSpans" if signal == "traces" else "rejectedDataPoints") or 0)
        return max(0, rejected), str(partial.get("errorMessage") or "")
    except (AttributeError, TypeError, ValueError, OverflowError, RecursionError):
        return None


def _words(kind: str, body: bytes) -> str:
    """The message of a refusal: that of a ``google.rpc.Status``, or a short text."""
    if kind == "application/x-protobuf":
        from google.protobuf.message import DecodeError
        from google.rpc.status_pb2 import Status

        try:
            return str(Status.FromString(body).message)
        except DecodeError:
            return ""
    if kind == "application/json":
        try:
            return str(json.loads(body).get("message") or "")
        except (AttributeError, ValueError, RecursionError):
            return ""
    return body.decode("utf-8", "replace") if kind == "text/plain" else ""


def _place(location: str) -> str:
    """The target of a redirect without its query, which often contains a token."""
    try:
        parts = urlsplit(location)
        host = f"//{parts.netloc.rpartition('@')[2]}" if parts.netloc else ""
    except ValueError:
        return "an address that is none"
    return one_line(f"{parts.scheme}:{host}{parts.path}" if parts.scheme else f"{host}{parts.path}")


def read_failure(words: str, *, tls: bool, status: str = "") -> Answer:
    """Interpret an error of the connection, over HTTP or gRPC.

    Args:
        words: message of the library.
        tls: whether TLS was used.
        status: gRPC's status code, ``""`` over HTTP.
    """
    for cause, signs in _SIGNS:
        if any(sign in words for sign in signs):
            if cause == "no-tls-there" and not tls:
                continue
            # The library's messages about these describe its own internals.
            return Answer(cause, "" if status in ("UNAVAILABLE", "UNKNOWN") else status)
    if status == "UNAVAILABLE" or not status:
        if any(sign in words for sign in _CUT) and not tls:
            return Answer("tls-there" if status else "other-protocol")
        if any(sign in words for sign in _CUT):
            return Answer("no-tls-there")
        return Answer("failed" if not status else "status", status, words)
    return Answer("timeout" if status == "DEADLINE_EXCEEDED" else "status", status, words)


_SIGNS: Final[tuple[tuple[Cause, tuple[str, ...]], ...]] = (
    ("certificate", ("CERTIFICATE_VERIFY_FAILED", "certificate verify failed", "Hostname mismatch", "doesn't match")),
    ("no-tls-there", ("WRONG_VERSION_NUMBER", "wrong version number", "packet length too long", "record layer failure",
                      "HTTP_REQUEST", "http request")),
    ("other-protocol", ("http1.x", "HTTP/1", "BadStatusLine", "BadStatus", "Received http2 header with status",
                        "Failed parsing HTTP/2", "NonASCIIHeader", "http2", "HTTP/0.9", "Invalid HTTP")),
    ("unreachable", ("Connection refused", "connection refused", "No route to host", "Network is unreachable",
                     "Name or service not known", "DNS resolution failed", "nodename nor servname")),
    ("timeout", ("timed out", "Timeout", "Deadline Exceeded")),
)  # fmt: skip
"""Words of OpenSSL, gRPC and requests that identify an error of the connection. The order matters."""
_CUT: Final = (
    "Socket closed",
    "Connection reset",
    "Connection aborted",
    "RemoteDisconnected",
    "EOF",
    "closed connection",
)
