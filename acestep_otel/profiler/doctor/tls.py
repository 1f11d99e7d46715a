"""What stands between this process and a receiver where TLS is spoken, or is not: each with its own words."""

from __future__ import annotations

import os
import socket
import ssl
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from acestep_otel.sdk.otlp import Protocol, Signal, signal_variable

_SECONDS: Final = 3.0
_OVERRULING: Final = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""What the library below the HTTP exporter prefers to the exporter's own setting."""
_WRONG_NAME: Final = 62
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH; an address that does not match is the next but one."""


def handshake_problem(address: str, signal: Signal, protocol: Protocol) -> tuple[str, str] | None:
    """Why a TLS connection to a receiver fails, and what to do; ``None`` when it does not, or none is asked for.

    Args:
        address: of the receiver, as a URL.
        signal: whose certificate variables count.
        protocol: that is spoken inside.
    """
    parts = urlsplit(address)
    if parts.scheme != "https":
        return None
    host, port = parts.hostname or "", parts.port or 443
    variable, authority = signal_variable(signal, "CERTIFICATE")
    advice = f"set {variable} to the file of the certificate authority that signed it"
    overruling = next(filter(os.environ.get, _OVERRULING), None)
    if protocol == "http/protobuf" and overruling is not None:
        advice = f"add the authority that signed it to {overruling}, which overrules {variable}, or unset that"
        variable, authority = overruling, os.environ[overruling]
    try:
        context = ssl.create_default_context(
            cafile=None if authority is None or Path(authority).is_dir() else authority,
            capath=authority if authority is not None and Path(authority).is_dir() else None,
        )
    except OSError as error:
        return f"{variable}: {authority!r} holds no certificates ({error.strerror or error})", f"correct {variable}"
    try:
        with (
            socket.create_connection((host, port), timeout=_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return None
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in (_WRONG_NAME, _WRONG_NAME + 2):
            return (
                f"the certificate of {host}:{port} is for another name ({error.verify_message})",
                "use a name that the certificate has",
            )
        return (
            f"the certificate of {host}:{port} is not trusted ({error.verify_message})",
            advice,
        )
    except (ssl.SSLError, ConnectionError, TimeoutError) as error:
        reason = getattr(error, "reason", None) or error
        if "WRONG_VERSION_NUMBER" in str(reason):
            return f"{host}:{port} speaks plain text, not TLS", f"use http://{host}:{port}"
        return (
            f"the TLS handshake with {host}:{port} fails ({reason})",
            "see what the receiver's log says; one that asks for a client's certificate needs "
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY",
        )


def speaks_tls(address: str) -> bool:
    """Whether a port that is spoken to in plain text answers a TLS greeting, whoever signed its certificate."""
    parts = urlsplit(address)
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((parts.hostname or "", parts.port or 80), timeout=_SECONDS) as plain,
            context.wrap_socket(plain),
        ):
            return True
    except ssl.SSLError as error:
        # An alert is an answer in TLS, for example to a client without a certificate.
        return "ALERT" in (error.reason or "")
    except OSError:
        return False


def credentials_advice(signal: Signal) -> str:
    """What to do where the receiver refuses this caller; a header's value is never shown."""
    variable, headers = signal_variable(signal, "HEADERS")
    if headers is None:
        return f"the receiver asks for a token: set {variable} (authorization=Bearer%20TOKEN, or what it asks for)"
    return f"the receiver refuses what {variable} says: correct the token there"


def quiet_grpc() -> None:
    """Keep gRPC's own log off the screen, where nobody asked for it; before gRPC is imported."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
