"""Audio codes as text: what the language model's tokens look like, or plain numbers."""

from __future__ import annotations

import re
from typing import Final

from acestep_otel.errors import SetupError

_TOKENS: Final = re.compile(r"(?:\s*<\|audio_code_\d+\|>)+\s*")
_NUMBER: Final = re.compile(r"\d+")


def parse_audio_codes(text: str) -> tuple[int, ...]:
    """Read ``<|audio_code_12|><|audio_code_7|>`` or ``12, 7``; nothing but white space is no codes.

    Whether the codes exist is the engine's matter.

    Raises:
        SetupError: something in the text is no audio code; the message names it.
    """
    if not text.strip():
        return ()
    if _TOKENS.fullmatch(text):
        return tuple(int(number) for number in _NUMBER.findall(text))
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if not _NUMBER.fullmatch(word):
            raise SetupError(
                f"{word!r} is no audio code: write '<|audio_code_12|><|audio_code_7|>' or '12,7', "
                "each number 0 ... 63999"
            )
    return tuple(map(int, words))
