"""Rows of a decode loop on the device, and the candidates they choose from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from acestep.planner.models import LanguageModel


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Tokens that may be drawn, as rows of the head.

    Attributes:
        weights: shape ``[candidates, hidden]``.
        first: token id of row 0 when the rows are consecutive.
        ids: token id of each row, int64, when they are not.
        bias: float32, minus infinity at rows that may not be drawn; ``None`` when all may.
    """

    weights: torch.Tensor
    first: int = 0
    ids: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    @classmethod
    def rows(cls, head: torch.Tensor, first: int, count: int) -> Candidates:
        """Consecutive rows, without a copy."""
        return cls(head[first : first + count], first=first)

    @classmethod
    def gathered(cls, head: torch.Tensor, ids: torch.Tensor) -> Candidates:
        """A few rows, copied."""
        return cls(head[ids], ids=ids)

    @classmethod
    def masked(cls, head: torch.Tensor, count: int, ids: torch.Tensor) -> Candidates:
        """The first ``count`` rows, of which only ``ids`` may be drawn."""
        bias = torch.full((count,), -torch.inf, device=head.device)
        bias[ids] = 0
        return cls(head[:count], bias=bias)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 logits of float32 hidden states, shape ``[items, candidates]``."""
        logits = (hidden.to(self.weights.dtype) @ self.weights.T).float()
        return logits if self.bias is None else logits + self.bias

    def token_ids(self, drawn: torch.Tensor) -> torch.Tensor:
        """Vocabulary ids of drawn candidates."""
        return drawn + self.first if self.ids is None else self.ids[drawn]


class DecodeState:
    """Rows in flight: their key-value cache, their positions and their last hidden state.

    Attributes:
        hidden: of each row's last token, shape ``[rows, hidden]``.
        forwards: passes so far.
    """

    hidden: torch.Tensor

    def __init__(self, model: LanguageModel, positions: torch.Tensor, visible: torch.Tensor | None) -> None:
        self._body = model.body
        self._cache = DynamicCache(config=model.body.config)
        # Next position of each row, [rows, 1]: padding on the left takes none.
        self._positions = positions
        # Which places of the cache a row may look at, [rows, capacity]; None when all may look at all.
        self._visible = visible
        self._finite = torch.ones((), dtype=torch.bool, device=model.device)
        self.forwards = 0

    @classmethod
    def start(cls, model: LanguageModel, prompts: Sequence[Sequence[int]], capacity: int) -> DecodeState:
        """Run the prompts, one row each, padded on the left.

        Args:
            model: the language model.
            prompts: token ids.
            capacity: positions that will follow; used only when the prompts differ in length.
        """
        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        pad = model.vocabulary.layout.pad
        rows = [[pad] * left + list(prompt) for left, prompt in zip(padding, prompts, strict=True)]
        lefts = torch.tensor(padding, device=model.device).unsqueeze(1)
        visible = torch.arange(longest + capacity, device=model.device) >= lefts if any(padding) else None
        state = cls(model, -lefts, visible)
        state.advance(torch.tensor(rows, device=model.device))
        return state

    def advance(self, ids: torch.Tensor) -> None:
        """Run tokens behind those of the cache; ``ids`` has shape ``[rows, tokens]``."""
        length = self._cache.get_seq_length() + ids.shape[1]
        steps = torch.arange(ids.shape[1], device=ids.device)
        output = self._body(
            input_ids=ids,
            attention_mask=self._attention_mask(length, ids.shape[1]),
            position_ids=(self._positions + steps).clamp(min=0),
            past_key_values=self._cache,
            use_cache=True,
        )
        self.hidden = output.last_hidden_state[:, -1]
        self._positions = self._positions + ids.shape[1]
        self._finite &= self.hidden.isfinite().all()
        self.forwards += 1

    def _attention_mask(self, length: int, tokens: int) -> torch.Tensor | None:
        """Boolean mask ``[rows, 1, tokens, length]`` of padded rows; ``None`` (plain causal) when none is padded."""
        if self._visible is None:
            return None
        visible = self._visible[:, None, None, :length]
        if tokens == 1:
            return visible
        key = torch.arange(length, device=visible.device)
        query = key[length - tokens :].unsqueeze(1)
        # Padding looks at itself, as a softmax over nothing is NaN.
        return (visible & (key <= query)) | (key == query)

    def repeat(self, items: int) -> None:
        """Make every row ``items`` rows, side by side, so that songs share the pass over the prompts."""
        if items == 1:
            return
        self._cache.batch_repeat_interleave(items)
        self.hidden = self.hidden.repeat_interleave(items, dim=0)
        self._positions = self._positions.repeat_interleave(items, dim=0)
        if self._visible is not None:
            self._visible = self._visible.repeat_interleave(items, dim=0)

    def time_advance(self) -> None:
        """One pass of one token that leaves the rows as they were, to be timed."""
        self.advance(torch.zeros(len(self.hidden), 1, dtype=torch.long, device=self.hidden.device))
        self._cache.crop(-1)
        self._positions = self._positions - 1

    def is_finite(self) -> bool:
        """Whether no pass produced NaN or infinity; waits for the device."""
        return bool(self._finite)
