"""How PyTorch draws a token: the candidates as rows of the head, guidance, and the whole as one recorded function."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch

from acestep.cuda_graphs import TensorFunction, captured
from acestep.planner.backends.choices import TokenChoice
from acestep.planner.backends.fused_sampling import drawing
from acestep.planner.sampling import sample
from acestep.types import SamplingSettings

_RECORDED_LIMIT: Final = 16
"""Maximum number of recorded functions: one per kind of candidates, number of rows and sampling settings."""


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
    def of(cls, choice: TokenChoice, head: torch.Tensor) -> Candidates:
        """The rows of a choice: a view if they are consecutive, otherwise a copy."""
        if choice.gathered is not None:
            ids = to_device(choice.gathered, head.device)
            return cls(head[ids], ids=ids)
        weights = head[choice.first : choice.first + choice.count]
        if choice.allowed is None:
            return cls(weights, first=choice.first)
        bias = torch.full((choice.count,), -torch.inf, device=head.device)
        bias.index_fill_(0, to_device(choice.allowed, head.device) - choice.first, 0.0)
        return cls(weights, first=choice.first, bias=bias)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 logits of float32 hidden states, shape ``[items, candidates]``."""
        logits = (hidden.to(self.weights.dtype) @ self.weights.T).float()
        return logits if self.bias is None else logits + self.bias

    def token_ids(self, drawn: torch.Tensor) -> torch.Tensor:
        """Vocabulary ids of drawn candidates."""
        return drawn + self.first if self.ids is None else self.ids[drawn]


def choose(
    candidates: Candidates,
    sampling: SamplingSettings,
    hidden: torch.Tensor,
    keys: torch.Tensor,
    draw: Callable[[torch.Tensor, SamplingSettings, torch.Tensor], torch.Tensor] = sample,
) -> torch.Tensor:
    """Guidance, head and sampling of one pass.

    Guidance is combined before the head, which is linear and then has half the rows to compute.

    Args:
        candidates: what may be drawn.
        sampling: how.
        hidden: shape ``[rows, hidden]``: a row per key, and with guidance as many unconditional ones after them.
        keys: of the noise, shape ``[songs]``.
        draw: one token per row of logits.

    Returns:
        Token ids, int64, shape ``[songs]``.
    """
    hidden = hidden.float()
    if len(hidden) > len(keys):
        conditional, unconditional = hidden.chunk(2)
        hidden = unconditional + sampling.guidance_scale * (conditional - unconditional)
    return candidates.token_ids(draw(candidates.logits(hidden), sampling, keys))


class Chooser:
    """``choose``, recorded as a CUDA graph for each kind of input when it first occurs; elsewhere just called.

    On CUDA tokens are drawn in fused kernels.

    A recording contains the addresses of the head: if the weights move, a new instance is needed.
    """

    def __init__(self) -> None:
        self._recorded: OrderedDict[Hashable, TensorFunction] = OrderedDict()

    def __call__(
        self, candidates: Candidates, sampling: SamplingSettings, hidden: torch.Tensor, keys: torch.Tensor
    ) -> torch.Tensor:
        """``choose``, whose result outlives the next call."""
        if candidates.ids is not None:
            return choose(candidates, sampling, hidden, keys)
        # A mask is passed as a tensor, so that all places of a grammar share one recorded choice.
        inputs = (hidden, keys) if candidates.bias is None else (hidden, keys, candidates.bias)

        draw = drawing(hidden.device)

        def among(hidden: torch.Tensor, keys: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
            return choose(replace(candidates, bias=bias), sampling, hidden, keys, draw)

        kind = (candidates.first, len(candidates.weights), sampling, *map(len, inputs))
        return self.recorded(kind, among, *inputs)(*inputs).clone()

    def recorded(self, kind: Hashable, function: TensorFunction, *examples: torch.Tensor) -> TensorFunction:
        """The recording of a function for a kind of inputs; made when the kind first occurs."""
        run = self.find(kind)
        if run is None:
            run = self._recorded[kind] = captured(function, *examples)
            if len(self._recorded) > _RECORDED_LIMIT:
                self._recorded.popitem(last=False)
        return run

    def find(self, kind: Hashable) -> TensorFunction | None:
        """The recording for a kind of inputs, if it has occurred."""
        if kind in self._recorded:
            self._recorded.move_to_end(kind)
        return self._recorded.get(kind)

    def clear(self) -> None:
        """Free all recordings."""
        self._recorded.clear()


def to_device(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy that does not wait for the device's current work."""
    host = torch.from_numpy(np.ascontiguousarray(values))
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)
