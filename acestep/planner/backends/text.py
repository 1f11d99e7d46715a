"""What a decode loop over text may draw, and when it ends: held to a grammar, or free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from acestep.planner.grammar import GrammarCursor
from acestep.planner.vocabulary import TokenLayout

Candidates = TypeVar("Candidates")
"""A backend's own form of what may be drawn."""
Drawable = TypeVar("Drawable", covariant=True)


class TextGuide(Protocol[Drawable]):
    """One sequence's way through a text."""

    @property
    def done(self) -> bool:
        """Whether nothing may follow."""

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end the text themselves; none where a grammar ends it."""

    def opening(self) -> list[int]:
        """Tokens that the text starts with, without a choice."""

    def candidates(self) -> Drawable:
        """What may be drawn next."""

    def accept(self, token_id: int) -> list[int]:
        """Move over a drawn token; returns it and all that follows it without a choice."""


class GrammarWalk:
    """The grammar's side of a backend; a class, so that its time can be taken at the backend's own methods."""

    def accept(self, cursor: GrammarCursor, token_id: int | None) -> list[int]:
        """Move the cursor over a drawn token (``None`` at the start) and over all that is forced behind it.

        Returns:
            The drawn token and the forced ones: the chunk that the next pass has to see.
        """
        drawn = []
        if token_id is not None:
            cursor.accept(token_id)
            drawn = [token_id]
        return drawn + cursor.forced()


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
        """What the grammar leaves."""
        return self.constrain(self.cursor)

    def accept(self, token_id: int) -> list[int]:
        """The token, and what the grammar forces behind it."""
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
