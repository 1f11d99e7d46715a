"""Addresses that a user gives: the one parser for every flag and variable that holds one.

User information (``http://user:password@host``) is parsed, and never part of a message.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from typing import Final
from urllib.parse import unquote, urlsplit

from acestep_otel.errors import SetupError

_LONGEST: Final = 2_048
_NAME: Final = re.compile(r"(?!-)[\w-]+(?<!-)(\.(?!-)[\w-]+(?<!-))*\.?")
_PORT: Final = re.compile(r"[0-9]{1,5}")

_Refused = Callable[[str], SetupError]


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a service.

    Attributes:
        scheme: ``http`` or ``https``; ``None`` where the text had none.
        host: name or IP address, without brackets.
        port: as given; ``None``: the default of the scheme.
        path: as given, ``""`` or with its leading slash.
        query: as given, without the question mark; it may contain a token and is never shown.
        credentials: user and password, decoded; ``None`` where there are none. Never shown.
    """

    scheme: str | None
    host: str
    port: int | None = None
    path: str = ""
    query: str = field(default="", repr=False)
    credentials: tuple[str, str] | None = field(default=None, repr=False)

    @property
    def authority(self) -> str:
        """Host and port, as a URL has them: an IPv6 address in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"

    def __str__(self) -> str:
        """The address as it may be shown: without user information and query."""
        scheme = "" if self.scheme is None else f"{self.scheme}://"
        return f"{scheme}{self.authority}{self.path}"

    @property
    def url(self) -> str:
        """The address as it is used, without user information, which travels in a header."""
        return f"{self}?{self.query}" if self.query else str(self)


def parse_address(text: str, name: str, *, example: str, needs_scheme: bool = True) -> Address:
    """Parse an address.

    Args:
        text: for example ``https://collector.example:4318/otlp`` or ``http://[::1]:4317``.
        name: flag or variable that holds it, for the message.
        example: an address of the kind, for the message.
        needs_scheme: whether ``host:port`` alone is refused.

    Raises:
        SetupError: it is no address; the message contains ``name``, and never a user's name or password.
    """

    def refused(why: str) -> SetupError:
        return SetupError(f"{name} {without_credentials(text)!r} is not a URL such as {example}: {why}")

    if len(text) > _LONGEST:
        raise SetupError(f"{name} is not a URL such as {example}: it has {len(text):,} characters")
    if any(not character.isprintable() or character.isspace() for character in text):
        raise refused("it has blanks or characters that cannot be shown")
    scheme, separator, _ = text.partition("://")
    if not separator and needs_scheme:
        raise refused("it does not begin with http:// or https://")
    if separator and scheme.lower() not in ("http", "https"):
        raise refused("it does not begin with http:// or https://")
    try:
        parts = urlsplit(text if separator else f"//{text}")
        host = parts.hostname or ""
    except ValueError as error:
        raise refused("its brackets do not contain an IPv6 address") from error
    if parts.fragment or text.endswith("#"):
        raise refused("it has a fragment (#), which is never sent")
    if "@" in parts.path:
        raise refused("it has an @ after its path: in a password, / is written %2F and @ is written %40")
    return Address(
        scheme=scheme.lower() if separator else None,
        host=_host(host, bracketed="[" in parts.netloc.rpartition("@")[2], refused=refused),
        port=_port(parts.netloc, refused=refused),
        path=parts.path,
        query=parts.query,
        credentials=None if parts.username is None else (unquote(parts.username), unquote(parts.password or "")),
    )


def without_credentials(text: str) -> str:
    """The text of an invalid address without user information and query, for messages."""
    shown = re.sub(r"^([^/@?]*:?//)?.*@", r"\1", text.strip(), flags=re.DOTALL)
    return shown.partition("?")[0]


def is_host(text: str) -> bool:
    """Whether a text is a host's name or an IP address, without brackets or port."""
    try:
        ip_address(text)
    except ValueError:
        return _NAME.fullmatch(text) is not None and len(text) <= 253
    return True


def _host(host: str, *, bracketed: bool, refused: _Refused) -> str:
    if not host:
        raise refused("it names no host")
    if bracketed:
        try:
            IPv6Address(host)
        except ValueError as error:
            raise refused("its brackets do not contain an IPv6 address") from error
    elif not is_host(host):
        raise refused(f"{host!r} is not a host name")
    return host


def _port(netloc: str, *, refused: _Refused) -> int | None:
    after_host = netloc.rpartition("@")[2].rpartition("]")[2]
    _, separator, port = after_host.rpartition(":")
    if not separator:
        return None
    if not _PORT.fullmatch(port) or not 1 <= int(port) <= 65_535:
        raise refused("its port is not a number from 1 to 65535")
    return int(port)
