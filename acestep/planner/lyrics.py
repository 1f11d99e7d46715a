"""Lyrics as the language model writes them, and as a song has them."""

from __future__ import annotations

import re
from typing import Final

from acestep.planner.metadata import MARKUP, printable

_PREAMBLE: Final = re.compile(r"#[ \t]*languages?[ \t]*(?:\n+[^#\n][^\n]*)?(?:\n+|\Z)", re.IGNORECASE)
"""A heading ``# Languages`` and the line below it, as in the renderer's own lyric prompt."""
_HEADER: Final = re.compile(r"#[ \t]*lyrics?[ \t]*(?:\n|\Z)", re.IGNORECASE)


def parse_lyrics(text: str) -> str:
    """Take the words out of what the model wrote behind its metadata.

    One ``# Languages`` preamble and one ``# Lyric`` or ``# Lyrics`` heading at the start are removed, and so are
    special tokens, control characters, halves of characters and white space at the ends of lines. Headings further
    down are part of the words.

    Args:
        text: output of the model; everything up to ``</think>`` is left out when it is there.

    Returns:
        The words, possibly none.
    """
    _, closed, behind = text.partition("</think>")
    words = printable(MARKUP.sub("", behind if closed else text))
    words = "\n".join(line.rstrip() for line in words.splitlines()).strip()
    for heading in (_PREAMBLE, _HEADER):
        if (match := heading.match(words)) is not None:
            words = words[match.end() :].lstrip()
    return words
