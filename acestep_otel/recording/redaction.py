"""What the user wrote stays off spans unless they opted in: captions, lyrics, file names, messages that quote them."""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

REDACTED: Final = "[redacted]"
_SHORTEST_QUOTE: Final = 4
"""Texts below this length are too common to be distinguished from the rest of a message."""
_QUOTED_WORDS: Final = 3
"""So many words in a row, in the user's order, are a quotation, also where the rest was cut off."""


def file_names(*paths: str | Path | None) -> Iterator[str]:
    """The ways in which a message may quote the files that a user named."""
    for path in paths:
        if path:
            yield from (str(path), str(Path(path).absolute()), Path(path).name)


class Scrubber:
    """Replaces the user's texts wherever they are quoted: whole, by the line, or by a few words in a row."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = list(texts)

    def __call__(self, message: str) -> str:
        """The message without quotations, plain or escaped as in ``repr`` or JSON."""
        quoted = _quotations(self._texts)
        if not quoted:
            return message
        # A lookahead, so that quotations that overlap are all found.
        pattern = re.compile(f"(?=({'|'.join(quoted)}))")
        clean, position = [], 0
        for start, end in _merged(found.span(1) for found in pattern.finditer(message)):
            clean += [message[position:start], REDACTED]
            position = end
        return "".join([*clean, message[position:]])

    def event(self, error: BaseException) -> dict[str, str]:
        """Attributes of an exception's event: message and stack trace, with those of its causes, scrubbed."""
        return {
            "exception.message": self(str(error)),
            "exception.stacktrace": self("".join(traceback.format_exception(error))),
        }


def _quotations(texts: Iterable[str]) -> list[str]:
    """Regular expressions of everything that counts as a quotation, longest first."""
    lines = {line.strip() for text in texts for line in (text, *text.splitlines())}
    plain = {line for line in lines if len(line) >= _SHORTEST_QUOTE}
    spellings = plain | {repr(line)[1:-1] for line in plain} | {json.dumps(line)[1:-1] for line in plain}
    patterns = {re.escape(spelling) for spelling in spellings}
    for line in plain:
        words = [re.escape(word) for word in line.split()]
        for first in range(len(words) - _QUOTED_WORDS + 1):
            patterns.add(r"\s+".join(words[first : first + _QUOTED_WORDS]))
    return sorted(patterns, key=len, reverse=True)


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order of their starts, those that touch made one."""
    merged: list[tuple[int, int]] = []
    for start, end in spans:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
