"""Which tokens a pass may draw, how they are numbered, and when a text ends.

The noise of a draw belongs to a candidate's number (``acestep.planner.sampling``), so the numbers are part of what a
seed means: every backend takes them from here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, Protocol, Self, TypeVar

import numpy as np

from acestep.planner.grammar import AllowedTokens, GrammarCursor
from acestep.planner.vocabulary import TokenIds, TokenLayout, Vocabulary

GATHER_LIMIT: Final = 256
"""Up to this many allowed tokens are numbered among themselves; more keep their place among the text tokens."""

Candidates = TypeVar("Candidates")
"""A backend's own form of what may be drawn."""
Drawable = TypeVar("Drawable", covariant=True)


@dataclass(frozen=True, slots=True, eq=False)
class TokenChoice:
    """Tokens that may be drawn.

    Attributes:
        first: token id of candidate 0 where candidates are consecutive rows of the vocabulary.
        count: consecutive rows.
        allowed: of the consecutive rows those that may be drawn, as token ids; ``None`` when all may.
        gathered: token ids of the candidates where they are not consecutive; then the other fields are not used.
    """

    first: int = 0
    count: int = 0
    allowed: TokenIds | None = None
    gathered: TokenIds | None = None

    @classmethod
    def codes(cls, layout: TokenLayout) -> Self:
        """Every valid audio code."""
        return cls(first=layout.code_base, count=layout.code_count)

    @classmethod
    def text(cls, layout: TokenLayout) -> Self:
        """Every text and special token."""
        return cls(count=layout.text_size)

    @classmethod
    def lyrics(cls, vocabulary: Vocabulary) -> Self:
        """Text, and the end of the turn."""
        return cls(count=vocabulary.layout.text_size, allowed=np.append(vocabulary.text_ids, vocabulary.layout.eos))

    @classmethod
    def of_grammar(cls, allowed: AllowedTokens, layout: TokenLayout) -> Self:
        """The tokens that a grammar allows."""
        if len(allowed.ids) <= GATHER_LIMIT:
            return cls(gathered=allowed.ids)
        return cls(count=layout.text_size, allowed=allowed.ids)


class TextGuide(Protocol[Drawable]):
    """The progress of one sequence through a text."""

    @property
    def done(self) -> bool:
        """Whether the text is complete."""

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end the text themselves; none where a grammar ends it."""

    def opening(self) -> list[int]:
        """Tokens that the text starts with, without a choice."""

    def candidates(self) -> Drawable:
        """What may be drawn next."""

    def accept(self, token_id: int) -> list[int]:
        """Move over a drawn token; returns it and all that follows it without a choice."""


@dataclass(frozen=True, slots=True)
class ConstrainedText(Generic[Candidates]):
    """Text under a grammar.

    Attributes:
        cursor: place in the grammar.
        constrain: candidates of a place.
        move: takes the cursor over a drawn token (``None`` at the start) and returns the chunk to feed.
        ends: none: the grammar ends the text.
    """

    cursor: GrammarCursor
    constrain: Callable[[GrammarCursor], Candidates]
    move: Callable[[GrammarCursor, int | None], list[int]]
    ends: frozenset[int] = frozenset()

    @property
    def done(self) -> bool:
        """Whether the block is complete."""
        return self.cursor.done

    def opening(self) -> list[int]:
        """What the grammar starts with."""
        return self.move(self.cursor, None)

    def candidates(self) -> Candidates:
        """What the grammar allows."""
        return self.constrain(self.cursor)

    def accept(self, token_id: int) -> list[int]:
        """The token, and what the grammar forces after it."""
        return self.move(self.cursor, token_id)


def reasoning_ends(layout: TokenLayout) -> frozenset[int]:
    """Tokens after which reasoning without a grammar is over: its closing tag, the turn's end, padding."""
    return frozenset({layout.think_close, layout.eos, layout.pad})


@dataclass(slots=True)
class FreeText(Generic[Candidates]):
    """Text of any of some tokens, up to the first that ends it.

    Attributes:
        drawn_from: the tokens.
        ends: those after which nothing follows.
        done: whether one of them was drawn.
    """

    drawn_from: Candidates
    ends: frozenset[int]
    done: bool = False

    def opening(self) -> list[int]:
        """Nothing: the first token is a choice."""
        return []

    def candidates(self) -> Candidates:
        """The same tokens everywhere."""
        return self.drawn_from

    def accept(self, token_id: int) -> list[int]:
        """The token alone."""
        self.done = token_id in self.ends
        return [token_id]
