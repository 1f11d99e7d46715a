"""What the user wrote stays off spans unless they opted in: captions, lyrics, and messages that quote them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

REDACTED: Final = "[redacted]"
_SHORTEST_QUOTE: Final = 4
"""Texts below this length are too common to be told from the rest of a message."""


class Scrubber:
    """Replaces the user's texts in an exception's message, keeping its type and traceback."""

    def __init__(self, texts: Iterable[str]) -> None:
        lines = {line.strip() for text in texts for line in (text, *text.splitlines())}
        # Longest first, so that a whole text goes before its lines do.
        self._texts = sorted((line for line in lines if len(line) >= _SHORTEST_QUOTE), key=len, reverse=True)

    def __call__(self, error: BaseException) -> BaseException:
        """The exception itself when it quotes nothing, else a stand-in of the same type name with a clean message."""
        message = str(error)
        clean = message
        for text in self._texts:
            clean = clean.replace(text, REDACTED).replace(repr(text)[1:-1], REDACTED)
        if clean == message:
            return error
        # A copy through the type's own constructor could need arguments that are not known here.
        stand_in: BaseException = type(type(error).__name__, (Exception,), {"__module__": type(error).__module__})(
            clean
        )
        return stand_in.with_traceback(error.__traceback__)
