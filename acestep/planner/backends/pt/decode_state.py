"""Rows in flight: their keys and values, and their last hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from acestep.planner.backends.pt.cache import CacheWindow, KeyValueCache
from acestep.planner.backends.pt.fused import FusedForward
from acestep.planner.budget import LanguageModel


class DecodeState:
    """Rows in flight: their place in the cache and their last hidden state.

    Attributes:
        cache: contains the rows, from row 0 on.
        hidden: of each row's last token, shape ``[rows, hidden]``; valid until the next pass.
        forwards: passes so far.
        reused: leading tokens of the first prompt that were not run, because the cache contained them.
    """

    hidden: torch.Tensor

    def __init__(self, model: LanguageModel, cache: KeyValueCache, fused: FusedForward | None) -> None:
        self._model = model
        self.cache = cache
        self._fused = fused
        # Next place of each row, [rows, 1], and the highest of them, known without reading from the device.
        self._places = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        self._length = 0
        # Over all hidden states: NaN and infinity persist once they occur.
        self._sum = torch.zeros((), device=model.device)
        self.forwards = 0
        self.reused = 0

    @classmethod
    def start(
        cls,
        model: LanguageModel,
        cache: KeyValueCache,
        prompts: Sequence[Sequence[int]],
        *,
        items: int = 1,
        shared: int = 0,
        fused: FusedForward | None = None,
    ) -> DecodeState:
        """Run the prompts once each, and make every one of them ``items`` rows, side by side.

        Args:
            model: the language model.
            cache: with room for all rows.
            prompts: token ids.
            items: rows per prompt.
            shared: leading tokens of the first prompt that are already in row 0 of the cache.
            fused: runs passes that are small enough.
        """
        state = cls(model, cache, fused)
        state._prefill(prompts, items, shared)
        return state

    def _prefill(self, prompts: Sequence[Sequence[int]], items: int, shared: int) -> None:
        device, pad = self._model.device, self._model.vocabulary.layout.pad
        self.reused = shared
        starts = [shared] + [0] * (len(prompts) - 1)
        rest = [list(prompt[start:]) for prompt, start in zip(prompts, starts, strict=True)]
        tokens = max(map(len, rest))
        # No token attends to the padding after a prompt, and its places are reused.
        ids = torch.tensor([row + [pad] * (tokens - len(row)) for row in rest], device=device)
        places = torch.tensor(starts, device=device).unsqueeze(1) + torch.arange(tokens, device=device)
        places = places.clamp(max=self.cache.capacity - 1)
        length = min(max(starts) + tokens, self.cache.capacity)
        hidden = self._run(ids, places, items, length)
        last = torch.tensor([len(row) - 1 for row in rest], device=device)
        self.hidden = hidden[torch.arange(len(prompts), device=device), last].repeat_interleave(items, dim=0)
        lengths = [len(prompt) for prompt in prompts]
        self._places = torch.tensor(lengths, device=device).repeat_interleave(items).unsqueeze(1)
        self._length = max(lengths)
        if items > 1:
            self.cache.spread(items, len(prompts) * items, self._length)

    def advance(self, ids: torch.Tensor) -> None:
        """Run tokens after those of the cache; ``ids`` has shape ``[rows, tokens]``."""
        tokens = ids.shape[1]
        places = self._places if tokens == 1 else self._places + torch.arange(tokens, device=ids.device)
        self._length += tokens
        self.hidden = self._run(ids, places, 1, self._length)[:, -1]
        self._places = self._places + tokens

    def _run(self, ids: torch.Tensor, places: torch.Tensor, stride: int, length: int) -> torch.Tensor:
        """Hidden states of tokens of every ``stride``-th row; a token attends to the positions up to its own."""
        self.forwards += 1
        if self._fused is not None and stride == 1 and self._fused.fits(*ids.shape):
            hidden = self._fused(ids, places)
        else:
            seen = torch.arange(length, device=ids.device) <= places.unsqueeze(-1)
            window = CacheWindow(self.cache, stride, places, length)
            # By position: transformers renamed `past_key_values` to `cache` in 5.24; the order is the same.
            attention_mask = {"full_attention": seen.unsqueeze(1)}
            hidden = self._model.body(ids, attention_mask, places, window, use_cache=True).last_hidden_state
        self._sum = self._sum + hidden.sum(dtype=torch.float32)
        return hidden

    def step_back(self) -> None:
        """Undo the last pass of one token, so that it can be timed again."""
        self._places = self._places - 1
        self._length -= 1

    def is_finite(self) -> bool:
        """Whether no pass produced NaN or infinity; waits for the device."""
        return bool(self._sum.isfinite())
