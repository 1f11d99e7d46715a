"""The model in mlx-lm, the rows of a decode loop on MLX arrays, and the candidates they choose from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from mlx_lm.models.cache import BatchKVCache
from mlx_lm.models.qwen3 import Model, ModelArgs

from acestep.planner.backends.choices import TokenChoice
from acestep.planner.budget import LanguageModel


def convert(model: LanguageModel) -> Any:
    """The model's body in mlx-lm, with copies of its weights."""
    config: dict[str, Any] = model.body.config.to_dict()  # type: ignore[operator, union-attr]
    converted = Model(ModelArgs.from_dict(config))
    converted.load_weights([(f"model.{name}", as_mlx(value)) for name, value in model.body.named_parameters()])
    mx.eval(converted.parameters())
    return converted.model


def as_mlx(tensor: torch.Tensor) -> mx.array:
    """A copy as an MLX array; bfloat16 is copied as raw bits, because NumPy has no type for it."""
    host = tensor.detach().cpu().contiguous()
    if host.dtype == torch.bfloat16:
        return mx.array(host.view(torch.int16).numpy()).view(mx.bfloat16)
    return mx.array(host.numpy())


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Tokens that may be drawn, as rows of the head.

    Attributes:
        weights: shape ``[candidates, hidden]``.
        first: token id of row 0 when the rows are consecutive.
        ids: token id of each row when they are not.
        bias: minus infinity at rows that may not be drawn; ``None`` when all may.
    """

    weights: mx.array
    first: int = 0
    ids: mx.array | None = None
    bias: mx.array | None = None

    @classmethod
    def of(cls, choice: TokenChoice, head: mx.array) -> Candidates:
        """The rows of a choice."""
        if choice.gathered is not None:
            ids = mx.array(choice.gathered)
            return cls(head[ids], ids=ids)
        weights = head[choice.first : choice.first + choice.count]
        if choice.allowed is None:
            return cls(weights, first=choice.first)
        bias = np.full(choice.count, -np.inf, dtype=np.float32)
        bias[choice.allowed - choice.first] = 0
        return cls(weights, first=choice.first, bias=mx.array(bias))

    def logits(self, hidden: mx.array) -> mx.array:
        """Float32 logits of float32 hidden states, shape ``[items, candidates]``."""
        logits = (hidden.astype(self.weights.dtype) @ self.weights.T).astype(mx.float32)
        return logits if self.bias is None else logits + self.bias

    def token_ids(self, drawn: mx.array) -> mx.array:
        """Vocabulary ids of drawn candidates."""
        return drawn + self.first if self.ids is None else self.ids[drawn]


class DecodeState:
    """Rows in flight.

    Attributes:
        hidden: of each row's last token, shape ``[rows, hidden]``.
        finite: whether no pass produced NaN or infinity; reading it waits for the device.
        forwards: passes so far.
    """

    hidden: mx.array

    def __init__(self, body: Any, prompts: Sequence[Sequence[int]], pad: int) -> None:
        """Run the prompts, one row each, padded on the left."""
        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        self._body = body
        self._cache = [BatchKVCache(padding) for _ in body.layers]
        self.finite = mx.array(True)
        self.forwards = 0
        self.advance(mx.array([[pad] * left + list(prompt) for left, prompt in zip(padding, prompts, strict=True)]))

    def advance(self, ids: mx.array) -> None:
        """Run tokens after those of the cache; ``ids`` has shape ``[rows, tokens]``."""
        self.hidden = self._body(ids, self._cache)[:, -1]
        self.finite = mx.logical_and(self.finite, mx.isfinite(self.hidden).all())
        self.forwards += 1

    def repeat(self, items: int) -> None:
        """Make every row ``items`` rows, side by side, so that songs share the pass over the prompts."""
        if items == 1:
            return
        self.hidden = mx.repeat(self.hidden, items, axis=0)
        for cache in self._cache:
            *arrays, length = cache.state
            cache.state = (*(mx.repeat(array, items, axis=0) for array in arrays), length)

    def time_advance(self) -> None:
        """One pass of one token that leaves the rows as they were, to be timed."""
        self.advance(mx.zeros((len(self.hidden), 1), dtype=mx.int64))
        mx.eval(self.hidden)
        for cache in self._cache:
            cache.trim(1)
