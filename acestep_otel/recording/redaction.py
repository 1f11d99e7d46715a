"""Keeps the user's texts off spans without opt-in: captions, lyrics, file names, and messages that quote them."""

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
"""Consecutive words of the user's text that count as a quotation, even if the rest was cut off."""
_EXCERPT: Final = 12
"""Consecutive characters that count as a quotation, wherever a message cut them out."""
_EXCERPT_WITHOUT_BLANKS: Final = 4
"""The same for scripts beyond ASCII, in which a word may be a single character."""
_FEWEST_LETTERS: Final = 6
"""Letters that an excerpt needs: blanks and rules alone identify no text."""
_IN_QUOTES: Final = re.compile(r"""(?<!\w)(['"`])(?P<inside>[^\n]{1,200}?)\1(?!\w)""")


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
        whole = (found.span(1) for found in pattern.finditer(message))
        spans = sorted([*whole, *_excerpts(message, self._texts), *_words_in_quotes(message, self._texts)])
        clean, position = [], 0
        for start, end in _merged(spans):
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


def _excerpts(message: str, texts: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Places of a message that contain an excerpt of a text."""
    pieces = {
        spelling[start : start + size]
        for text in texts
        for spelling in {text, repr(text)[1:-1], json.dumps(text)[1:-1]}
        for size in (_EXCERPT, _EXCERPT_WITHOUT_BLANKS)
        for start in range(len(spelling) - size + 1)
    }
    for size in (_EXCERPT, _EXCERPT_WITHOUT_BLANKS):
        for start in range(len(message) - size + 1):
            piece = message[start : start + size]
            if piece in pieces and _is_telling(piece):
                yield start, start + size


def _is_telling(piece: str) -> bool:
    if len(piece) == _EXCERPT:
        return sum(map(str.isalnum, piece)) >= _FEWEST_LETTERS
    return not any(map(str.isascii, piece))


def _words_in_quotes(message: str, texts: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Places of a message with words of a text in quotation marks, even one word: libraries quote input this way."""
    for found in _IN_QUOTES.finditer(message):
        word = re.compile(rf"(?<!\w){re.escape(found['inside'])}(?!\w)")
        if any(word.search(text) for text in texts):
            yield found.span("inside")


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order of their starts, those that touch made one."""
    merged: list[tuple[int, int]] = []
    for start, end in spans:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
