"""Tokens of the 5 Hz language model: text and special tokens from a tokenizer, audio codes by arithmetic."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from itertools import groupby
from typing import Final

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from acestep.types import AUDIO_CODE_COUNT

TokenIds = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """Rows of the embedding matrix.

    Attributes:
        eos: end of a chat turn, ``<|im_end|>``.
        pad: ``<|endoftext|>``.
        turn_start: start of a chat turn, ``<|im_start|>``.
        think_open: ``<think>``.
        think_close: ``</think>``.
        text_size: rows 0 ... text_size - 1 are text and special tokens.
        code_base: row of audio code 0.
        code_count: valid audio codes; rows after them must never be produced.
        vocabulary_size: all rows.
    """

    eos: int
    pad: int
    turn_start: int
    think_open: int
    think_close: int
    text_size: int
    code_base: int
    vocabulary_size: int
    code_count: int = AUDIO_CODE_COUNT


QWEN3_LAYOUT: Final = TokenLayout(
    eos=151_645,
    pad=151_643,
    turn_start=151_644,
    think_open=151_667,
    think_close=151_668,
    text_size=151_669,
    code_base=151_669,
    vocabulary_size=217_204,
)
"""Layout of the released models (0.6B, 1.7B and 4B): Qwen3's tokens, then 65,535 code rows, 64,000 of them valid."""


class TextClass(Enum):
    """The use of a text token inside a caption; tokens of no class are never used there."""

    WORD = "word"
    """Visible characters only, for example ``ing`` or ``,``."""
    SPACED_WORD = "spaced word"
    """One space, then visible characters."""
    SPACE = "space"
    """One space and nothing else."""
    LINE_END = "line end"
    """Visible characters or nothing, then one newline: ``.`` and a newline are often one token."""


# Tokens are spelled in the byte-level alphabet, where Ġ is a space, Ċ a newline and Ā ... Ġ, ġ are other control bytes.
# A backtick or a "<" could open markup that readers of the caption interpret.
_VISIBLE: Final = r"[^\u0100-\u0121`<]"
_CLASS_PATTERN: Final = {
    TextClass.WORD: re.compile(f"{_VISIBLE}+"),
    TextClass.SPACED_WORD: re.compile(f"\u0120{_VISIBLE}+"),
    TextClass.SPACE: re.compile("\u0120"),
    TextClass.LINE_END: re.compile(f"{_VISIBLE}*\u010a"),
}


class Vocabulary:
    """Text to token ids and back, and the classes of text tokens.

    Audio codes are not in the tokenizer: their ids are ``code_base + code``.

    Args:
        tokenizer: a byte-level BPE tokenizer of the text; its added tokens may include special tokens and audio codes.
        layout: ids of special tokens and codes.
    """

    def __init__(self, tokenizer: Tokenizer, layout: TokenLayout) -> None:
        self.layout = layout
        # Without added tokens nothing in a text is read as markup: text of users and models cannot end a turn.
        self._text = Tokenizer(tokenizer.model)
        self._text.normalizer = tokenizer.normalizer
        self._text.pre_tokenizer = tokenizer.pre_tokenizer
        self._text.decoder = tokenizer.decoder
        self._markup = {
            layout.eos: "<|im_end|>",
            layout.pad: "<|endoftext|>",
            layout.turn_start: "<|im_start|>",
            layout.think_open: "<think>",
            layout.think_close: "</think>",
        }

    def encode(self, text: str) -> list[int]:
        """Canonical ids of a text; markup such as ``<|im_end|>`` in it stays ordinary text."""
        ids: list[int] = self._text.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, with special tokens and audio codes spelled out; ids without a string are omitted."""
        pieces: list[str] = []
        for is_text, run in groupby(ids, key=self._is_text):
            members = list(run)
            pieces.append(self._text.decode(members) if is_text else "".join(map(self._spell, members)))
        return "".join(pieces)

    def code_to_id(self, code: int) -> int:
        """Token id of an audio code.

        Raises:
            ValueError: no such code.
        """
        if not 0 <= code < self.layout.code_count:
            raise ValueError(f"audio code {code} is outside 0 ... {self.layout.code_count - 1}")
        return self.layout.code_base + code

    def id_to_code(self, token_id: int) -> int:
        """Audio code of a token id.

        Raises:
            ValueError: the id is not that of a valid audio code.
        """
        code = token_id - self.layout.code_base
        if not 0 <= code < self.layout.code_count:
            raise ValueError(f"token {token_id} is not an audio code")
        return code

    @cached_property
    def text_ids(self) -> TokenIds:
        """Sorted ids of every text token, without special tokens and audio codes."""
        ids = self._text.get_vocab(with_added_tokens=False).values()
        return np.array(sorted(token_id for token_id in ids if self._is_text(token_id)), dtype=np.int64)

    @cached_property
    def text_classes(self) -> dict[TextClass, TokenIds]:
        """Sorted ids of each class; special tokens and audio codes are in none."""
        members: dict[TextClass, list[int]] = {text_class: [] for text_class in TextClass}
        for spelling, token_id in self._text.get_vocab(with_added_tokens=False).items():
            if not self._is_text(token_id):
                continue
            for text_class, pattern in _CLASS_PATTERN.items():
                if pattern.fullmatch(spelling):
                    members[text_class].append(token_id)
        return {text_class: np.array(sorted(ids), dtype=np.int64) for text_class, ids in members.items()}

    def ids_of(self, classes: Sequence[TextClass]) -> TokenIds:
        """Sorted ids of several classes together."""
        return np.sort(np.concatenate([self.text_classes[text_class] for text_class in classes]))

    def _is_text(self, token_id: int) -> bool:
        return token_id < self.layout.text_size and token_id not in self._markup

    def _spell(self, token_id: int) -> str:
        if token_id in self._markup:
            return self._markup[token_id]
        return f"<|audio_code_{token_id - self.layout.code_base}|>"
