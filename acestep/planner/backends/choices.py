"""Which tokens a step may draw, and how they are numbered.

The noise of a draw belongs to a candidate's number (``acestep.planner.sampling``), so the numbers are part of what a
seed means: every backend takes them from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from acestep.planner.grammar import AllowedTokens
from acestep.planner.vocabulary import TokenIds, TokenLayout, Vocabulary

GATHER_LIMIT: Final = 256
"""Up to this many allowed tokens are numbered among themselves; more keep their place among the text tokens."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenChoice:
    """Tokens that may be drawn.

    Attributes:
        first: token id of candidate 0 where candidates are consecutive rows of the vocabulary.
        count: consecutive rows.
        allowed: of the consecutive rows those that may be drawn, as token ids; ``None`` when all may.
        gathered: token ids of the candidates where they are not consecutive; then the other fields mean nothing.
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
        """What a grammar leaves."""
        if len(allowed.ids) <= GATHER_LIMIT:
            return cls(gathered=allowed.ids)
        return cls(count=layout.text_size, allowed=allowed.ids)
