"""What the PyTorch backend keeps between phases: keys and values, recorded passes and choices, copies of weights."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Final
from weakref import WeakKeyDictionary

import torch

from acestep.planner.backends import COMPOSING
from acestep.planner.backends.cache import KeyValueCache
from acestep.planner.backends.capture import TensorFunction, captured
from acestep.planner.backends.choices import TokenChoice
from acestep.planner.backends.decode_state import Candidates, DecodeState
from acestep.planner.backends.fused import FusedForward, can_fuse, weight_addresses
from acestep.planner.budget import LanguageModel, rounded_positions
from acestep.planner.grammar import AllowedTokens
from acestep.planner.sampling import item_keys, sample
from acestep.types import SamplingSettings

logger = logging.getLogger(__name__)

_CHOICE_LIMIT: Final = 16
"""Recorded choices that are kept: one per kind of candidates, number of rows and sampling settings."""
_TOLERANCE: Final = 0.1
"""Relative difference that rounding to bfloat16 explains, over all layers."""
_TRIED_TOKENS: Final = 4


class Workspace:
    """Everything that can be made again from the weights alone.

    Args:
        model: the language model.
        fuse: run small passes in kernels of their own; ``None`` does where they run and agree with the body.

    Attributes:
        model: the language model.
    """

    def __init__(self, model: LanguageModel, fuse: bool | None) -> None:
        self.model = model
        self._fuse = fuse
        self._cache: KeyValueCache | None = None
        self._fused: FusedForward | None = None
        self._addresses: tuple[int, ...] = ()
        self._choices: OrderedDict[tuple[object, ...], TensorFunction] = OrderedDict()
        self._of_grammar: WeakKeyDictionary[AllowedTokens, Candidates] = WeakKeyDictionary()
        self._lyrics: Candidates | None = None

    @property
    def nbytes(self) -> int:
        """Memory of keys and values."""
        return 0 if self._cache is None else self._cache.nbytes

    @property
    def fuses(self) -> bool:
        """Whether small passes run in kernels of their own; asked for the first time, this tries them."""
        if self._fuse is None:
            self._fuse = can_fuse(self.model) and kernels_agree(self.model)
        return self._fuse

    def clear(self) -> None:
        """Free everything."""
        self._cache = self._fused = self._lyrics = None
        self._choices.clear()
        self._of_grammar.clear()

    def follow_weights(self) -> None:
        """Free what belongs to weights that were moved since the last call."""
        addresses = weight_addresses(self.model)
        if addresses != self._addresses:
            self.clear()
            self._addresses = addresses

    def forget_tokens(self) -> None:
        """Let no prompt go on from what the cache holds."""
        if self._cache is not None:
            self._cache.held = []

    def start(self, prompts: Sequence[Sequence[int]], capacity: int, items: int) -> DecodeState:
        """Rows of a phase, in the one cache (see ``PtBackend.prefill``)."""
        cache = self._reserve(items * len(prompts), max(map(len, prompts)) + capacity)
        shared = cache.shared_with(prompts[0])
        cache.held = []
        if self.fuses and self._fused is None:
            self._fused = FusedForward(self.model, cache)
        return DecodeState.start(self.model, cache, prompts, items=items, shared=shared, fused=self._fused)

    def _reserve(self, rows: int, positions: int) -> KeyValueCache:
        """The cache, dealt out to the rows; what is held in one that grows goes along, recorded passes end with it."""
        capacity = rounded_positions(positions)
        cache, self._cache = self._cache, None
        if cache is None:
            cache = KeyValueCache(self.model, rows * capacity)
        elif cache.slots < rows * capacity:
            self._fused = None
            cache = cache.grown(self.model, rows * capacity)
        cache.deal(capacity)
        self._cache = cache
        return cache

    def choice(self, candidates: Candidates, sampling: SamplingSettings, *inputs: torch.Tensor) -> TensorFunction:
        """Guidance, head and sampling as one function of hidden states, keys and mask; recorded where that pays."""

        def choose(hidden: torch.Tensor, keys: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
            hidden = hidden.float()
            if len(hidden) > len(keys):
                conditional, unconditional = hidden.chunk(2)
                hidden = unconditional + sampling.guidance_scale * (conditional - unconditional)
            among = replace(candidates, bias=bias)
            return among.token_ids(sample(among.logits(hidden), sampling, keys))

        if not self.fuses or candidates.ids is not None:
            return choose
        shape = (candidates.first, len(candidates.weights), sampling, *map(len, inputs))
        if shape not in self._choices:
            recorded = captured(choose, *inputs)
            # What is drawn outlives the next draw.
            self._choices[shape] = lambda *given: recorded(*given).clone()
            if len(self._choices) > _CHOICE_LIMIT:
                self._choices.popitem(last=False)
        self._choices.move_to_end(shape)
        return self._choices[shape]

    def codes(self) -> Candidates:
        """Every valid audio code."""
        return Candidates.of(TokenChoice.codes(self.model.vocabulary.layout), self.model.head)

    def text(self) -> Candidates:
        """Every text and special token."""
        return Candidates.of(TokenChoice.text(self.model.vocabulary.layout), self.model.head)

    def lyrics(self) -> Candidates:
        """Text, and the end of the turn."""
        if self._lyrics is None:
            self._lyrics = Candidates.of(TokenChoice.lyrics(self.model.vocabulary), self.model.head)
        return self._lyrics

    def of_grammar(self, allowed: AllowedTokens) -> Candidates:
        """What a grammar leaves, made once per place in it."""
        candidates = self._of_grammar.get(allowed)
        if candidates is None:
            choice = TokenChoice.of_grammar(allowed, self.model.vocabulary.layout)
            candidates = self._of_grammar[allowed] = Candidates.of(choice, self.model.head)
        return candidates


def kernels_agree(model: LanguageModel) -> bool:
    """Whether passes in kernels of our own give what the body gives, with this GPU, its driver and its Triton.

    Compared are the hidden states of a few tokens behind a prompt: two rows of one token, and one row of a chunk; and
    the code that a guided song then draws, with the choice recorded and not. When they differ, or the kernels cannot be
    built or recorded, a warning says so.
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
        if difference < _TOLERANCE and codes[0] == codes[1]:
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
    workspace = Workspace(model, fuse)
    inputs = hidden.to(model.dtype), item_keys(0, COMPOSING, 1).to(model.device)
    return int(workspace.choice(workspace.codes(), SamplingSettings(), *inputs)(*inputs))


def start_apart(model: LanguageModel, prompts: Sequence[Sequence[int]], items: int, fuse: bool) -> DecodeState:
    """Rows with a cache of their own and room for a few tokens, to be tried and timed."""
    capacity = len(prompts[0]) + _TRIED_TOKENS
    cache = KeyValueCache(model, items * len(prompts) * capacity)
    cache.deal(capacity)
    fused = FusedForward(model, cache) if fuse else None
    return DecodeState.start(model, cache, prompts, items=items, fused=fused)
