"""Deciding tokens inside the engine's sampler: the planner's own sampling, guidance and grammar on its logits.

The engine is left nothing to choose: whatever is decided here is the only token with a finite logit. So seeds mean
the same as on the other backends, whatever the engine's own random numbers are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import torch

from acestep.planner.backends.choices import TextGuide, TokenChoice
from acestep.planner.sampling import sample
from acestep.types import SamplingSettings

ROW: Final = "acestep_row"
"""Key of a request's extra arguments: which of the phase's rows it is."""


class Selection(Protocol):
    """Decides one phase's tokens."""

    def tokens(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """Decide the next token of some rows.

        Args:
            logits: float32, shape ``[rows, vocabulary]``.
            rows: which of the phase's rows they are, in any order.

        Returns:
            Token ids, int64, shape ``[rows]``.
        """


class TokenSelector:
    """Where the engine's sampler finds who decides: one phase at a time.

    Attributes:
        selection: decides the running phase's tokens; ``None`` between phases.
        finite: whether no logits of the phase were NaN or infinite, on the device.
    """

    def __init__(self) -> None:
        self.selection: Selection | None = None
        self.finite = True

    def open(self, selection: Selection) -> None:
        """Start a phase."""
        self.selection, self.finite = selection, True

    def close(self) -> None:
        """End the phase."""
        self.selection = None

    def select(self, logits: torch.Tensor, places: Sequence[int], rows: Sequence[int]) -> None:
        """Leave every row one token, in place.

        Args:
            logits: float32, shape ``[batch, vocabulary]``; rows of no phase are left alone.
            places: where the phase's rows lie in the batch.
            rows: which rows these are.
        """
        if self.selection is None or not places:
            return
        index = torch.tensor(places, device=logits.device)
        own = logits[index]
        self.finite = self.finite and bool(own.isfinite().all())
        tokens = self.selection.tokens(own, rows)
        logits[index] = torch.full_like(own, -torch.inf).scatter_(1, tokens.unsqueeze(1), 0.0)


class CodesSelection:
    """Audio codes of several songs.

    Rows 0 ... songs - 1 are conditional; with guidance, row ``songs + i`` is the unconditional row of song i.

    Attributes:
        in_step: whether every conditional row has met its unconditional one in every pass.
    """

    def __init__(self, choice: TokenChoice, sampling: SamplingSettings, keys: torch.Tensor, *, guided: bool) -> None:
        """Set up.

        Args:
            choice: the codes.
            sampling: how to sample, and the guidance scale.
            keys: of the noise, int64, shape ``[count, songs]``.
            guided: whether the rows come in pairs.
        """
        self._choice = choice
        self._sampling = sampling
        self._keys = keys
        self._guided = guided
        self._steps = [0] * keys.shape[1]
        self.in_step = True

    def tokens(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """Decide the next code of each song (see ``Selection.tokens``); both rows of a song get the same."""
        songs = len(self._steps)
        place = {row: index for index, row in enumerate(rows)}
        present = [row for row in rows if row < songs]
        codes = logits[:, self._choice.first : self._choice.first + self._choice.count]
        drawn_from = codes[[place[song] for song in present]]
        if self._guided:
            if len(rows) != 2 * len(present) or any(song + songs not in place for song in present):
                self.in_step = False
                return logits.new_full((len(rows),), self._choice.first, dtype=torch.long)
            unconditional = codes[[place[song + songs] for song in present]]
            drawn_from = unconditional + self._sampling.guidance_scale * (drawn_from - unconditional)
        keys = torch.stack([self._keys[self._steps[song], song] for song in present])
        drawn = sample(drawn_from, self._sampling, keys) + self._choice.first
        for song in present:
            self._steps[song] += 1
        order = {song: index for index, song in enumerate(present)}
        return drawn[[order[row % songs] for row in rows]]


class TextSelection:
    """One text, under a guide.

    The engine has no way to take several tokens at once behind the prompt, so what is forced takes a pass each.

    Attributes:
        written: tokens so far, the opening included.
        sampled: those that were a choice.
    """

    def __init__(
        self,
        guide: TextGuide[TokenChoice],
        sampling: SamplingSettings,
        keys: torch.Tensor,
        closing: int,
    ) -> None:
        """Set up.

        Args:
            guide: what may be drawn, and where it ends.
            sampling: how to sample.
            keys: of the noise, int64, shape ``[token_limit]``.
            closing: token that ends the engine's request when the guide does; it is not part of the text.
        """
        self._guide = guide
        self._sampling = sampling
        self._keys = keys
        self._closing = closing
        self._forced: list[int] = []
        self.opening = guide.opening()
        self.written = list(self.opening)
        self.sampled = 0

    @property
    def over(self) -> bool:
        """Whether nothing may follow."""
        return not self._forced and (self._guide.done or self.sampled == len(self._keys))

    def tokens(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:  # noqa: ARG002
        """Decide the next token (see ``Selection.tokens``)."""
        return torch.tensor([self._next(logits)], device=logits.device)

    def _next(self, logits: torch.Tensor) -> int:
        if self.over:
            return self._closing
        if not self._forced:
            self._forced = self._guide.accept(self._sample(logits))
            self.sampled += 1
        self.written.append(self._forced.pop(0))
        return self.written[-1]

    def _sample(self, logits: torch.Tensor) -> int:
        choice = self._guide.candidates()
        key = self._keys[self.sampled : self.sampled + 1]
        if choice.gathered is not None:
            ids = torch.from_numpy(choice.gathered).to(logits.device)
            return int(ids[sample(logits[:, ids], self._sampling, key)])
        candidates = logits[:, choice.first : choice.first + choice.count]
        if choice.allowed is not None:
            bias = torch.full_like(candidates, -torch.inf)
            bias[:, torch.from_numpy(choice.allowed).to(logits.device) - choice.first] = 0
            candidates = candidates + bias
        return choice.first + int(sample(candidates, self._sampling, key))
