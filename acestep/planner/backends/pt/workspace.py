"""What the PyTorch backend keeps between phases: keys and values, recorded passes and choices, copies of weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import torch

from acestep.planner.backends.candidates import Candidates, Chooser, choose
from acestep.planner.backends.choices import TokenChoice
from acestep.planner.backends.phases import COMPOSING
from acestep.planner.backends.pt.cache import KeyValueCache
from acestep.planner.backends.pt.decode_state import DecodeState
from acestep.planner.backends.pt.fused import FusedForward, can_fuse, weight_addresses
from acestep.planner.budget import LanguageModel, rounded_positions
from acestep.planner.sampling import item_keys
from acestep.types import SamplingSettings

logger = logging.getLogger(__name__)

TOLERANCE: Final = 0.1
"""Relative difference that rounding to bfloat16 explains, over all layers."""
_TRIED_TOKENS: Final = 4


class Workspace:
    """Everything that can be rebuilt from the weights alone.

    Args:
        model: the language model.
        fuse: run small passes in the engine's kernels; ``None`` does if they run and agree with the body.

    Attributes:
        model: the language model.
    """

    def __init__(self, model: LanguageModel, fuse: bool | None) -> None:
        self.model = model
        self._fuse = fuse
        self._cache: KeyValueCache | None = None
        self._fused: FusedForward | None = None
        self._addresses: tuple[int, ...] = ()
        self._chooser = Chooser()

    @property
    def nbytes(self) -> int:
        """Memory of keys and values."""
        return 0 if self._cache is None else self._cache.nbytes

    @property
    def fuses(self) -> bool:
        """Whether small passes run in the engine's kernels; the first call checks them."""
        if self._fuse is None:
            self._fuse = can_fuse(self.model) and kernels_agree(self.model)
        return self._fuse

    def clear(self) -> None:
        """Free everything."""
        self._cache = self._fused = None
        self._chooser.clear()

    def follow_weights(self) -> bool:
        """Free what belongs to weights that were moved since the last call; returns whether they were."""
        addresses = weight_addresses(self.model)
        moved = addresses != self._addresses
        if moved:
            self.clear()
            self._addresses = addresses
        return moved

    def forget_tokens(self) -> None:
        """Prevent prompts from continuing from the content of the cache."""
        if self._cache is not None:
            self._cache.held = []

    def start(self, prompts: Sequence[Sequence[int]], capacity: int, items: int) -> DecodeState:
        """Rows of a phase, in the one cache (see ``PtBackend.prefill``)."""
        cache = self._reserve(items * len(prompts), max(map(len, prompts)) + capacity)
        shared = cache.shared_with(prompts[0])
        cache.held = []
        if self.fuses and self._fused is None:
            self._fused = FusedForward(self.model, cache.addresses)
        return DecodeState.start(self.model, cache, prompts, items=items, shared=shared, fused=self._fused)

    def _reserve(self, rows: int, positions: int) -> KeyValueCache:
        """The cache, divided among the rows; when it grows, its content is kept and recorded passes are dropped."""
        capacity = rounded_positions(positions)
        cache, self._cache = self._cache, None
        if cache is None:
            cache = KeyValueCache(self.model, rows * capacity)
        elif cache.slots < rows * capacity:
            self._fused = None
            cache = cache.grown(self.model, rows * capacity)
        cache.set_row_capacity(capacity)
        self._cache = cache
        return cache

    def choose(
        self, candidates: Candidates, sampling: SamplingSettings, hidden: torch.Tensor, keys: torch.Tensor
    ) -> torch.Tensor:
        """Guidance, head and sampling (see ``candidates.choose``); recorded where that pays."""
        return (self._chooser if self.fuses else choose)(candidates, sampling, hidden, keys)


def kernels_agree(model: LanguageModel) -> bool:
    """Whether passes in the engine's kernels agree with the body on this GPU, driver and Triton version.

    Compares the hidden states of a few tokens after a prompt (two rows of one token, and one row of a chunk) and the
    code that a guided song then draws, with the choice recorded and not. If they differ, or the kernels cannot be built
    or recorded, a warning is logged.
    """
    try:
        states = [_hidden_behind_prompts(model, fuse) for fuse in (False, True)]
        difference = float((states[1] - states[0]).norm() / states[0].norm())
        codes = [_guided_code(model, fuse, states[0][:2]) for fuse in (False, True)]
    except torch.OutOfMemoryError:
        raise
    # Whatever else a compiler or driver raises: the body of transformers still works.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    else:
        if difference < TOLERANCE and codes[0] == codes[1]:
            return True
        reason = f"their hidden states differ by {difference:.1%}, and codes {codes} are drawn"
    logger.warning("the language model decodes without its own kernels, many times slower: %s", reason)
    return False


@torch.inference_mode()
def _hidden_behind_prompts(model: LanguageModel, fuse: bool) -> torch.Tensor:
    prompts = [list(range(40)), list(range(60, 85))]
    pair, single = start_apart(model, prompts, 1, fuse), start_apart(model, prompts[:1], 1, fuse)
    pair.advance(torch.tensor([[7], [8]], device=model.device))
    # The next pass of the same shape may reuse the memory of these.
    hidden = [pair.hidden.float()]
    single.advance(torch.tensor([[5, 6, 7]], device=model.device))
    return torch.cat([*hidden, single.hidden.float()])


@torch.inference_mode()
def _guided_code(model: LanguageModel, fuse: bool, hidden: torch.Tensor) -> int:
    codes = Candidates.of(TokenChoice.codes(model.vocabulary.layout), model.head)
    keys = item_keys(0, COMPOSING, 1).to(model.device)
    return int(Workspace(model, fuse).choose(codes, SamplingSettings(), hidden.to(model.dtype), keys))


def start_apart(model: LanguageModel, prompts: Sequence[Sequence[int]], items: int, fuse: bool) -> DecodeState:
    """Rows with a separate cache and room for a few tokens, for checks and timing."""
    capacity = len(prompts[0]) + _TRIED_TOKENS
    cache = KeyValueCache(model, items * len(prompts) * capacity)
    cache.set_row_capacity(capacity)
    fused = FusedForward(model, cache.addresses) if fuse else None
    return DecodeState.start(model, cache, prompts, items=items, fused=fused)
