"""The interface of a backend, and the code that all backends share.

A backend owns the forward passes, the guidance and the sampling. It needs no hidden states or logits at this
boundary, so engines that do not expose these can be backends too.
"""

from __future__ import annotations

import gc
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from threading import Lock
from typing import ClassVar, Final, Generic
from weakref import WeakKeyDictionary

import torch
from torch import nn

from acestep.errors import BackendUnavailable, InvalidOutput
from acestep.planner.backends.choices import (
    Candidates,
    ConstrainedText,
    FreeText,
    TextGuide,
    TokenChoice,
    reasoning_ends,
)
from acestep.planner.backends.phases import (
    COMPOSING,
    LYRICS,
    REASONING,
    CodesPhase,
    PhaseTokens,
    TextPhase,
)
from acestep.planner.budget import LanguageModel, PlannerBudget
from acestep.planner.grammar import AllowedTokens, GrammarCursor
from acestep.types import ProgressCallback, SamplingSettings

_TIMED_PASSES: Final = 7
_WARM_UPS: Final = 2


class PlannerBackend(ABC, Generic[Candidates]):
    """Runs the language model.

    A subclass has two loops, over text and over codes. Each of their passes goes through its method ``prefill`` or
    ``decode``, and all that the grammar does through ``constrain`` and ``accept``: an observer may wrap these four.

    Args:
        model: a loaded language model.

    Attributes:
        name: ``pt``, ``vllm`` or ``mlx``.
        vocabulary: tokens of the model.
        budget: limits of the model on its device.
    """

    name: ClassVar[str]
    budget: PlannerBudget

    def __init__(self, model: LanguageModel) -> None:
        self._model_name = model.name
        self.vocabulary = model.vocabulary
        self._turn = Lock()
        self._of_grammar: WeakKeyDictionary[AllowedTokens, Candidates] = WeakKeyDictionary()
        self._of_lyrics: Candidates | None = None

    def generate_metadata(
        self,
        prompt: Sequence[int],
        cursor: GrammarCursor | None,
        sampling: SamplingSettings,
        seed: int,
        token_limit: int,
        progress: ProgressCallback | None = None,
    ) -> PhaseTokens:
        """Phase 1: write the metadata block.

        Args:
            prompt: token ids.
            cursor: start of the grammar; ``None`` lets the model write any text up to ``</think>`` or the turn's end.
            sampling: how to sample; guidance is never used on text.
            seed: of the request.
            token_limit: most tokens to sample.
            progress: called with every sampled token.

        Raises:
            InvalidOutput: the model produced NaN or infinity.
            BackendFailed: the engine did not do what was requested.
            BackendUnavailable: the model was unloaded.
        """
        layout = self.vocabulary.layout
        with self._phase(REASONING):
            guide: TextGuide[Candidates]
            if cursor is None:
                guide = FreeText(self._candidates(TokenChoice.text(layout)), reasoning_ends(layout))
            else:
                guide = ConstrainedText(cursor, self.constrain, self.accept)
            return self._write_text(TextPhase(REASONING, prompt, guide, sampling, seed, token_limit, progress))

    def generate_lyrics(
        self,
        prompt: Sequence[int],
        sampling: SamplingSettings,
        seed: int,
        token_limit: int,
        progress: ProgressCallback | None = None,
    ) -> PhaseTokens:
        """Write free text up to the end of the turn.

        Only text tokens and the end of the turn can be drawn: no audio code, no other special token.

        Args:
            prompt: token ids.
            sampling: how to sample; guidance is never used on text.
            seed: of the request.
            token_limit: most tokens to sample.
            progress: called with every sampled token.

        Returns:
            Tokens whose last one is the end of the turn, unless ``token_limit`` came first.

        Raises:
            InvalidOutput: the model produced NaN or infinity.
            BackendFailed: the engine did not do what was requested.
            BackendUnavailable: the model was unloaded.
        """
        with self._phase(LYRICS):
            if self._of_lyrics is None:
                self._of_lyrics = self._candidates(TokenChoice.lyrics(self.vocabulary))
            guide = FreeText(self._of_lyrics, frozenset({self.vocabulary.layout.eos}))
            return self._write_text(TextPhase(LYRICS, prompt, guide, sampling, seed, token_limit, progress))

    def generate_codes(
        self,
        conditional: Sequence[int],
        unconditional: Sequence[int] | None,
        count: int,
        sampling: SamplingSettings,
        seeds: Sequence[int],
        progress: ProgressCallback | None = None,
    ) -> PhaseTokens:
        """Phase 2: write exactly ``count`` audio codes per seed.

        Args:
            conditional: the prompt, shared by all songs.
            unconditional: the prompt of the guidance; ``None`` without guidance.
            count: codes per song, 1 or more.
            sampling: how to sample, and the guidance scale.
            seeds: one per song.
            progress: called with codes per song, in steps.

        Raises:
            InvalidOutput: the model produced NaN or infinity.
            BackendFailed: the engine did not do what was requested.
            BackendUnavailable: the model was unloaded.
        """
        with self._phase(COMPOSING):
            return self._write_codes(CodesPhase(conditional, unconditional, count, sampling, seeds, progress))

    def constrain(self, cursor: GrammarCursor) -> Candidates:
        """The candidates that the grammar allows at this place, created once per place."""
        allowed = cursor.allowed()
        candidates = self._of_grammar.get(allowed)
        if candidates is None:
            choice = TokenChoice.of_grammar(allowed, self.vocabulary.layout)
            candidates = self._of_grammar[allowed] = self._candidates(choice)
        return candidates

    def accept(self, cursor: GrammarCursor, token_id: int | None) -> list[int]:
        """Move the cursor over a drawn token (``None`` at the start) and over all that is forced after it.

        Returns:
            The drawn token and the forced ones: the chunk that the next passes have to process.
        """
        drawn = []
        if token_id is not None:
            cursor.accept(token_id)
            drawn = [token_id]
        return drawn + cursor.forced()

    def measure_guidance_share(self, rows: int, context: int) -> float:
        """Share of a decode pass that the unconditional rows cost.

        Args:
            rows: songs generated together.
            context: positions in the cache.

        Returns:
            ``1 - time(rows) / time(2 * rows)``, from medians of alternating passes, 0 ... 1.
        """
        prompt = [self.vocabulary.layout.pad] * context
        with self._phase(COMPOSING):
            return _share_saved(self._decode_timer(rows, [prompt]), self._decode_timer(rows, [prompt, prompt[1:]]))

    def measure_prefill_guidance_share(self, tokens: int) -> float:
        """The same for the pass over the prompts, of which the conditional one has ``tokens`` tokens."""
        prompt = [self.vocabulary.layout.pad] * tokens
        with self._phase(COMPOSING):
            return _share_saved(self._prefill_timer([prompt]), self._prefill_timer([prompt, prompt[1:]]))

    @property
    def decode_path(self) -> str | None:
        """How small passes run; ``None`` where there is one way only."""
        return None

    @property
    def movable_weights(self) -> nn.Module | None:
        """The module whose weights may be kept in host memory between uses; ``None`` if they stay on the device."""
        return None

    def release(self) -> None:
        """Free what can be rebuilt from the weights; the next phase rebuilds it."""

    @abstractmethod
    def unload(self) -> None:
        """Free the model's memory; the backend cannot be used afterwards. Unloading twice has no effect."""

    @contextmanager
    def _phase(self, stage: str) -> Iterator[None]:  # noqa: ARG002
        """What one phase runs in: phases of several threads take turns."""
        with self._turn:
            yield

    @abstractmethod
    def _candidates(self, choice: TokenChoice) -> Candidates:
        """A choice in the backend's own form."""

    @abstractmethod
    def _write_text(self, phase: TextPhase[Candidates]) -> PhaseTokens:
        """Decode one row until the guide is done or ``token_limit`` tokens were sampled."""

    @abstractmethod
    def _write_codes(self, phase: CodesPhase) -> PhaseTokens:
        """Decode all rows of phase 2, whose end is known beforehand."""

    @abstractmethod
    def _decode_timer(self, songs: int, prompts: Sequence[Sequence[int]]) -> Callable[[], float]:
        """A function that runs one decode pass after the prompts and returns its seconds."""

    @abstractmethod
    def _prefill_timer(self, prompts: Sequence[Sequence[int]]) -> Callable[[], float]:
        """A function that runs the prompts and returns the seconds it took."""

    def _forget_candidates(self) -> None:
        """Release candidates, which may reference weights."""
        self._of_grammar.clear()
        self._of_lyrics = None

    def _require_finite(self, finite: bool, stage: str) -> None:
        if not finite:
            raise InvalidOutput(f"the language model {self._model_name} produced NaN or infinity", stage=stage)


def unloaded() -> BackendUnavailable:
    """The error of a backend that is used after ``unload``."""
    return BackendUnavailable("the language model was unloaded: load it again")


def free_memory(device: torch.device) -> None:
    """Free memory that is no longer referenced."""
    gc.collect()
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.empty_cache()


def seconds_of(device: torch.device, work: Callable[[], object]) -> float:
    """Duration of one unit of work, on the clock of the device that it runs on."""
    if device.type == "cuda":
        start, end = (torch.Event(device, enable_timing=True) for _ in range(2))
        with torch.cuda.device(device):
            start.record()
            work()
            end.record()
            end.synchronize()
        return float(start.elapsed_time(end)) / 1e3
    begin = time.perf_counter()
    work()
    if device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - begin


def _share_saved(smaller: Callable[[], float], larger: Callable[[], float]) -> float:
    """Share of the larger work's time that the smaller one saves, from medians of alternating runs, 0 ... 1."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for repetition in range(_WARM_UPS + _TIMED_PASSES):
        for timer, results in zip((smaller, larger), seconds, strict=True):
            duration = timer()
            if repetition >= _WARM_UPS:
                results.append(duration)
    return min(max(1 - median(seconds[0]) / median(seconds[1]), 0.0), 1.0)
