"""Advice for each response of a receiver."""

from __future__ import annotations

import socket
import ssl
from typing import Final

from acestep_otel.sdk.answers import Answer
from acestep_otel.sdk.otlp import DEFAULT_ENDPOINTS, FLAG, OtlpTarget, credentials_variable

_TLS_SECONDS: Final = 3.0
_HEADERS_WANTED: Final = frozenset({"401", "403", "UNAUTHENTICATED", "PERMISSION_DENIED"})
_NOT_TAKEN: Final = frozenset({"404", "405", "UNIMPLEMENTED"})
_TOO_MUCH: Final = frozenset({"429", "RESOURCE_EXHAUSTED"})
_TOO_LARGE: Final = frozenset({"413"})
_NOT_NOW: Final = frozenset({"500", "502", "503", "504", "UNAVAILABLE", "INTERNAL", "ABORTED", "CANCELLED", "UNKNOWN"})


def diagnosed(answer: Answer, target: OtlpTarget) -> Answer:
    """The answer; after a closed or unintelligible connection the port is checked, because it may require TLS.

    Servers in Go and nginx answer plain text on a TLS port with status 400 and close. Whether that answer is read, or
    the connection breaks before, depends on timing.
    """
    suspect = answer.cause in ("other-protocol", "tls-there", "timeout", "failed") or answer.status.startswith("400")
    if target.tls or not suspect:
        return answer
    cause = "tls-there" if speaks_tls(target) else "other-protocol" if answer.cause == "tls-there" else answer.cause
    return Answer(cause, answer.status, answer.words)


def speaks_tls(target: OtlpTarget) -> bool:
    """Whether the port answers a TLS handshake."""
    context = ssl.create_default_context()
    # Only TLS support is checked, not the identity of the server: nothing is sent to it.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    where = (target.address.host, target.address.port or 80)
    try:
        with socket.create_connection(where, timeout=_TLS_SECONDS) as connection, context.wrap_socket(connection):
            return True
    except (OSError, ValueError):
        return False


def advice(answer: Answer, target: OtlpTarget) -> str:
    """What to do, in terms of the command line."""
    address = target.address
    place = f"in {target.source}"
    other = "http/protobuf" if target.protocol == "grpc" else "grpc"
    match answer.cause:
        case "rejected":
            return "look at the receiver's log: it accepted the request and rejected its content"
        case "redirected":
            return f"name the receiver itself {place}: this address is a login page or a proxy"
        case "foreign":
            port = DEFAULT_ENDPOINTS[target.protocol].rpartition(":")[2]
            return f"name the receiver's port {place} ({target.protocol} usually has {port}): this is another service"
        case "no-tls-there":
            plain = f"http://{address.authority}"
            if target.has_scheme:
                return f"write {plain} {place}"
            return f"write {plain} {place}, or set OTEL_EXPORTER_OTLP_INSECURE=true"
        case "tls-there":
            return f"write https://{address.authority} {place}"
        case "certificate":
            return "set OTEL_EXPORTER_OTLP_CERTIFICATE to the file with the receiver's certificate authority"
        case "other-protocol":
            return f"choose --otlp-protocol {other}, or the port for {target.protocol}"
        case "timeout":
            return f"check whether the port expects {other} (--otlp-protocol {other}), and whether the receiver hangs"
        case "status":
            return _about_status(answer, target)
    return "look at the receiver's log"


def _about_status(answer: Answer, target: OtlpTarget) -> str:
    code = answer.status.partition(" ")[0]
    if code in _HEADERS_WANTED:
        name, given = credentials_variable(target.signal)
        if given:
            return f"the receiver refuses the token in {name}: correct it there"
        return f"set {name} to the header that the receiver requires (authorization=Bearer%20TOKEN)"
    if code in _NOT_TAKEN:
        path = f"/v1/{target.signal}"
        if target.protocol != "grpc" and target.source != FLAG and not target.address.path.endswith(path):
            return f"end the address in {target.source} with {path}"
        switch = f"OTEL_{target.signal.upper()}_EXPORTER=none"
        return f"set {switch} if the receiver does not accept {target.signal}, or send to a collector that does"
    if code in _TOO_MUCH:
        return "the receiver is at its limit: try again later, or raise the limit"
    if code in _TOO_LARGE:
        return "raise the receiver's limit on a request, or set OTEL_BSP_MAX_EXPORT_BATCH_SIZE lower"
    if code in _NOT_NOW:
        return "look at the receiver's log, and at its backends: it is running but cannot accept data now"
    return "look at the receiver's log: it does not accept what was sent"
