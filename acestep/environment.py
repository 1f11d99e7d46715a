"""Words of environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from acestep.errors import InvalidRequest

_YES: Final = frozenset({"1", "true", "yes", "y", "on"})
_NO: Final = frozenset({"0", "false", "no", "n", "off"})


def says_yes(environment: Mapping[str, str], variable: str, *, default: bool = False) -> bool:
    """Whether a variable says yes; not set, or empty, it says ``default``.

    Raises:
        InvalidRequest: it says neither yes nor no.
    """
    word = environment.get(variable, "").strip().lower()
    if not word:
        return default
    if word not in _YES | _NO:
        raise InvalidRequest(f"{variable}={word!r} is neither yes nor no: give 1 or 0")
    return word in _YES
