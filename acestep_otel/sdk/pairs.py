"""Variables that hold several pairs: headers and resource attributes, by the specification's rules.

The SDK skips invalid entries and logs them, values included. Here they are errors, without the value.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_to_bytes

from acestep_otel.errors import SetupError

_HEADERS_ARE: Final = "write name=value, separate headers by commas, write a blank as %20 and no shell quotes"
_HEADER_NAME: Final = re.compile(r"[!#$&'*+\-.^_`|~0-9A-Za-z]+")
_HEADER_VALUE: Final = re.compile(r"[\x20\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")
_PAIRS_ARE: Final = "separate pairs by commas, and write a comma inside a value as %2C"
_SHOWN: Final = 60


def parse_headers(name: str, text: str) -> dict[str, str]:
    """The headers that a variable holds: ``name=value``, separated by commas, the value percent-encoded.

    Args:
        name: the variable, for the message.
        text: its value.

    Returns:
        Values by name in lower case.

    Raises:
        SetupError: an entry is not a header; the message has its name where there is one, and never a value.
    """
    headers = {}
    for position, entry in enumerate(text.split(","), start=1):
        if not entry.strip():
            continue
        key, separator, value = (part.strip() for part in entry.partition("="))
        if not separator or not _HEADER_NAME.fullmatch(key):
            raise SetupError(f"{name}: entry {position} does not begin with a header's name and =; {_HEADERS_ARE}")
        if not _HEADER_VALUE.fullmatch(value):
            raise SetupError(
                f"{name}: the value of {key!r} has a quote, a semicolon, a backslash or a character outside ASCII; "
                f"{_HEADERS_ARE}"
            )
        if not _is_text(decoded := unquote_to_bytes(value)):
            raise SetupError(
                f"{name}: the value of {key!r} decodes to characters that a header cannot contain; {_HEADERS_ARE}"
            )
        headers[key.lower()] = decoded.decode("ascii").strip()
    return headers


def _is_text(value: bytes) -> bool:
    return all(0x20 <= byte < 0x7F for byte in value)


def parse_resource_attributes(name: str, text: str) -> dict[str, str]:
    """The pairs of ``OTEL_RESOURCE_ATTRIBUTES``: ``key=value``, separated by commas, the value percent-encoded.

    Returns:
        Values by key. Empty values are omitted, so that their defaults apply.

    Raises:
        SetupError: an entry is not a pair.
    """
    attributes = {}
    for position, entry in enumerate(text.split(","), start=1):
        if not entry.strip():
            continue
        key, separator, value = (part.strip() for part in entry.partition("="))
        if not separator or not key or any(character.isspace() for character in key):
            raise SetupError(f"{name}: entry {position} ({entry.strip()[:_SHOWN]!r}) is not key=value; {_PAIRS_ARE}")
        try:
            decoded = unquote_to_bytes(value).decode()
        except UnicodeError as error:
            raise SetupError(f"{name}: the value of {key!r} is not UTF-8 when it is decoded; {_PAIRS_ARE}") from error
        if decoded.strip():
            attributes[key] = decoded
    return attributes
