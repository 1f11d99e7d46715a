"""The grammar of the metadata block that the language model writes before the audio codes.

The block is a fixed sequence of fields. Its grammar is an automaton over tokens, not over characters: literals and
values are walked along the ids that the tokenizer gives them, so the model only receives token sequences that it was
trained on, and a run without a choice is known as ids ("jump-forward"), without sampling.

``MetadataGrammar`` is compiled once per vocabulary and never changes; a ``GrammarCursor`` is one sequence's place
in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from acestep.planner.metadata import BPM_RANGE, DURATION_RANGE, KEYSCALES, LANGUAGES, TIME_SIGNATURES, dump_metadata
from acestep.planner.vocabulary import TextClass, TokenIds, Vocabulary
from acestep.types import SongMetadata

CAPTION_TOKEN_LIMIT: Final = 512
"""Most tokens of a caption, its line breaks included (the reference's limit)."""
_WORD_TOKENS: Final = 3
"""Room that one more word of a caption can take: a space, the word, the newline after it."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class AllowedTokens:
    """What may come next.

    Compiled once per grammar state, so a backend can keep its device copy by identity.

    Attributes:
        ids: sorted token ids, int64.
    """

    ids: TokenIds

    def __contains__(self, token_id: int) -> bool:
        position = int(np.searchsorted(self.ids, token_id))
        return position < len(self.ids) and int(self.ids[position]) == token_id


@dataclass(frozen=True, slots=True, eq=False)
class TrieNode:
    """A place within literals and values; without children it is the end of the field.

    Attributes:
        allowed: the next tokens.
        children: where each leads.
    """

    allowed: AllowedTokens
    children: dict[int, TrieNode]


@dataclass(frozen=True, slots=True, eq=False)
class CaptionTokens:
    """What a free caption is made of, and how it ends.

    A caption is lines of text, each ended by a newline and each but the first indented by two spaces (YAML folding).
    After a newline the model chooses between the indentation and the first token of the field that follows.

    Attributes:
        line_start: the first word of a line, with the space before it.
        word: what follows a space that is a separate token.
        inside: anywhere else in a line.
        after_newline: indentation, or the end of the caption.
        end: the end of the caption only.
        newline: a newline only.
        space: the token that is one space; also the indentation, as the second space belongs to the word.
        line_ends: tokens that end a line.
    """

    line_start: AllowedTokens
    word: AllowedTokens
    inside: AllowedTokens
    after_newline: AllowedTokens
    end: AllowedTokens
    newline: AllowedTokens
    space: int
    line_ends: AllowedTokens


@dataclass(frozen=True, slots=True, eq=False)
class _Field:
    """One field of a request's block: a trie, after which a free caption may follow."""

    root: TrieNode
    has_free_caption: bool = False


class MetadataGrammar:
    """The compiled grammar; immutable, to be shared by requests and threads.

    Args:
        vocabulary: tokens of the model.
        duration_limit: longest song in seconds that the model may choose.
    """

    def __init__(self, vocabulary: Vocabulary, duration_limit: int = DURATION_RANGE[1]) -> None:
        self._vocabulary = vocabulary
        self.duration_limit = duration_limit
        self._opening = _trie([[vocabulary.layout.think_open, *vocabulary.encode("\n")]])
        self._caption_name = _trie([vocabulary.encode("caption:")])
        self._fields = {
            "bpm": self._choice("bpm", range(BPM_RANGE[0], BPM_RANGE[1] + 1)),
            "duration": self._choice("duration", range(DURATION_RANGE[0], duration_limit + 1)),
            "keyscale": self._choice("keyscale", KEYSCALES),
            "language": self._choice("language", LANGUAGES),
            "timesignature": self._choice("timesignature", TIME_SIGNATURES),
        }
        self.caption = self._caption_tokens()

    def cursor(
        self,
        given: SongMetadata,
        *,
        with_caption: bool,
        with_language: bool,
        caption_token_limit: int = CAPTION_TOKEN_LIMIT,
    ) -> GrammarCursor:
        """Start a block.

        Args:
            given: normalised values that the model must write as they are.
            with_caption: whether the block has a caption: free, unless ``given`` has one.
            with_language: whether the model names the language; a given language is in the block anyway.
            caption_token_limit: most tokens of a free caption.
        """
        fields = [_Field(self._opening), self._field("bpm", given)]
        if given.caption is not None:
            fields.append(_Field(self._choice("caption", [given.caption])))
        elif with_caption:
            fields.append(_Field(self._caption_name, has_free_caption=True))
        fields += [self._field("duration", given), self._field("keyscale", given)]
        if with_language or given.language is not None:
            fields.append(self._field("language", given))
        fields.append(self._field("timesignature", given))
        return GrammarCursor(tuple(fields), self.caption, caption_token_limit)

    def _field(self, name: str, given: SongMetadata) -> _Field:
        value = getattr(given, name)
        return _Field(self._fields[name] if value is None else self._choice(name, [value]))

    def _choice(self, name: str, values: Iterable[int | str]) -> TrieNode:
        return _trie(self._line(name, value) for value in values)

    def _line(self, name: str, value: int | str) -> list[int]:
        known: dict[str, Any] = {name: value}
        return self._vocabulary.encode(dump_metadata(SongMetadata(**known)) + "\n")

    def _caption_tokens(self) -> CaptionTokens:
        newline, space = self._vocabulary.encode("\n"), self._vocabulary.encode(" ")
        end = self._fields["duration"].allowed.ids
        text = self._vocabulary.ids_of
        return CaptionTokens(
            line_start=AllowedTokens(text([TextClass.SPACED_WORD, TextClass.SPACE])),
            word=AllowedTokens(text([TextClass.WORD])),
            inside=AllowedTokens(text(list(TextClass))),
            after_newline=AllowedTokens(np.sort(np.concatenate([space, end]))),
            end=AllowedTokens(end),
            newline=AllowedTokens(np.array(newline, dtype=np.int64)),
            space=space[0],
            line_ends=AllowedTokens(text([TextClass.LINE_END])),
        )


class GrammarCursor:
    """One sequence's place in the grammar."""

    def __init__(self, fields: tuple[_Field, ...], caption: CaptionTokens, caption_token_limit: int) -> None:
        self._fields = fields
        self._caption = caption
        self._caption_token_limit = caption_token_limit
        self._index = 0
        self._node: TrieNode | None = fields[0].root
        self._caption_state = caption.line_start
        self._caption_length = 0

    @property
    def done(self) -> bool:
        """Whether the block is complete, up to the newline of its last field."""
        return self._index == len(self._fields)

    def allowed(self) -> AllowedTokens:
        """What may come next.

        Raises:
            ValueError: the block is complete.
        """
        if self.done:
            raise ValueError("the metadata block is complete: nothing may follow")
        return self._caption_state if self._node is None else self._node.allowed

    def forced(self) -> list[int]:
        """Pass over every token that leaves no choice, and return their ids."""
        run: list[int] = []
        while not self.done and len(ids := self.allowed().ids) == 1:
            run.append(int(ids[0]))
            self.accept(run[-1])
        return run

    def accept(self, token_id: int) -> None:
        """Move over one token.

        Raises:
            ValueError: the token is not allowed here.
        """
        if token_id not in self.allowed():
            raise ValueError(f"token {token_id} is not allowed here")
        if self._node is None:
            self._accept_caption(token_id)
        else:
            self._enter(self._node.children[token_id])

    def _enter(self, node: TrieNode) -> None:
        if node.children:
            self._node = node
        elif self._fields[self._index].has_free_caption:
            self._node = None
        else:
            self._index += 1
            self._node = None if self.done else self._fields[self._index].root

    def _accept_caption(self, token_id: int) -> None:
        caption = self._caption
        if self._caption_state in (caption.after_newline, caption.end) and token_id != caption.space:
            self._index += 1
            self._enter(self._fields[self._index].root.children[token_id])
            return
        self._caption_length += 1
        room = self._caption_token_limit - self._caption_length
        if self._caption_state is caption.after_newline:
            self._caption_state = caption.line_start
        elif token_id in caption.line_ends:
            self._caption_state = caption.after_newline if room > _WORD_TOKENS else caption.end
        elif token_id == caption.space:
            self._caption_state = caption.word
        else:
            self._caption_state = caption.inside if room >= _WORD_TOKENS else caption.newline


def _trie(sequences: Iterable[list[int]]) -> TrieNode:
    """The trie of some token sequences, none of which starts another."""
    branches: dict[int, list[list[int]]] = {}
    for sequence in sequences:
        if sequence:
            branches.setdefault(sequence[0], []).append(sequence[1:])
    return TrieNode(
        allowed=AllowedTokens(np.array(sorted(branches), dtype=np.int64)),
        children={token_id: _trie(rest) for token_id, rest in branches.items()},
    )
