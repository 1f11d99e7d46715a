"""The phases of the language model: what a backend has to run, and the tokens that it wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, Self

import torch

from acestep.planner.backends.choices import Candidates, TextGuide
from acestep.planner.sampling import item_keys
from acestep.types import Progress, ProgressCallback, SamplingSettings

REASONING: Final = "lm.cot"
COMPOSING: Final = "lm.codes"
LYRICS: Final = "lm.lyrics"
PROGRESS_INTERVAL: Final = 32
"""Codes between two reports; a report may have to wait for the device."""


@dataclass(frozen=True, slots=True)
class EngineTimes:
    """What an engine itself measured about a phase: seconds, of the slowest of its requests.

    Attributes:
        queue: from the request's arrival in the scheduler to its first pass.
        time_to_first_token: from the request's arrival in the process to its first token.
        prefill: from its first pass to its first token.
        decode: from its first token to its last.
    """

    queue: float
    time_to_first_token: float
    prefill: float
    decode: float


@dataclass(frozen=True, slots=True)
class PhaseTokens:
    """Output of a phase, and what it took.

    Attributes:
        ids: vocabulary ids written, one series per song (one series where text is written).
        prompt_tokens: of the conditional prompt, which all songs share.
        sampled_tokens: tokens that were a choice, over all songs.
        forced_tokens: tokens that the grammar determined.
        unconditional_tokens: prompt and output of the unconditional rows; 0 without guidance.
        forwards: forward passes, the one over the prompts included.
        reused_tokens: of the prompt's, those that an earlier phase had run and this one did not run again.
        engine_times: the engine's own timings; ``None`` if the backend is not a separate engine.
    """

    ids: tuple[tuple[int, ...], ...]
    prompt_tokens: int
    sampled_tokens: int
    forced_tokens: int
    unconditional_tokens: int
    forwards: int
    reused_tokens: int = 0
    engine_times: EngineTimes | None = None

    @classmethod
    def of_text(
        cls,
        written: Sequence[int],
        prompt: Sequence[int],
        *,
        sampled: int,
        forwards: int,
        reused_tokens: int = 0,
        engine_times: EngineTimes | None = None,
    ) -> Self:
        """A phase that wrote one text without guidance; tokens that were not sampled were forced by the grammar."""
        return cls(
            ids=(tuple(written),),
            prompt_tokens=len(prompt),
            sampled_tokens=sampled,
            forced_tokens=len(written) - sampled,
            unconditional_tokens=0,
            forwards=forwards,
            reused_tokens=reused_tokens,
            engine_times=engine_times,
        )

    @classmethod
    def of_codes(
        cls,
        songs: Sequence[Sequence[int]],
        conditional: Sequence[int],
        unconditional: Sequence[int] | None,
        *,
        forwards: int,
        reused_tokens: int = 0,
        engine_times: EngineTimes | None = None,
    ) -> Self:
        """A phase that wrote as many codes for each song; with guidance an unconditional row processed them too."""
        sampled = sum(map(len, songs))
        return cls(
            ids=tuple(map(tuple, songs)),
            prompt_tokens=len(conditional),
            sampled_tokens=sampled,
            forced_tokens=0,
            unconditional_tokens=0 if unconditional is None else len(unconditional) + sampled,
            forwards=forwards,
            reused_tokens=reused_tokens,
            engine_times=engine_times,
        )


@dataclass(frozen=True, slots=True)
class TextPhase(Generic[Candidates]):
    """One text to write.

    Attributes:
        stage: ``lm.cot`` or ``lm.lyrics``.
        prompt: token ids.
        guide: what may be drawn, and where the text ends.
        sampling: how to sample; guidance is never used on text.
        seed: of the request.
        token_limit: most tokens to sample.
        progress: called with every sampled token.
    """

    stage: str
    prompt: Sequence[int]
    guide: TextGuide[Candidates]
    sampling: SamplingSettings
    seed: int
    token_limit: int
    progress: ProgressCallback | None

    def noise_keys(self) -> torch.Tensor:
        """One per token that may be sampled, int64, shape ``[token_limit]``, on the host."""
        return item_keys(self.seed, self.stage, self.token_limit)

    def report(self, written: int) -> None:
        """Report progress."""
        if self.progress is not None:
            self.progress(Progress(self.stage, written, None))


@dataclass(frozen=True, slots=True)
class CodesPhase:
    """Audio codes to write.

    Attributes:
        conditional: the prompt, shared by all songs.
        unconditional: the prompt of the guidance; ``None`` without guidance.
        count: codes per song, 1 or more.
        sampling: how to sample, and the guidance scale.
        seeds: one per song.
        progress: called with codes per song, in steps.
    """

    conditional: Sequence[int]
    unconditional: Sequence[int] | None
    count: int
    sampling: SamplingSettings
    seeds: Sequence[int]
    progress: ProgressCallback | None = None

    @property
    def prompts(self) -> list[Sequence[int]]:
        """The conditional prompt, and the unconditional one with guidance."""
        return [self.conditional] if self.unconditional is None else [self.conditional, self.unconditional]

    def noise_keys(self) -> torch.Tensor:
        """One per code, int64, shape ``[count, songs]``, on the host."""
        return torch.stack([item_keys(seed, COMPOSING, self.count) for seed in self.seeds], dim=1)

    def is_report_due(self, written: int) -> bool:
        """Whether progress is reported after this many codes of each song, which waits for the device."""
        return written == self.count or written % PROGRESS_INTERVAL == 0

    def report(self, written: int) -> None:
        """Report progress."""
        if self.progress is not None:
            self.progress(Progress(COMPOSING, written, self.count))
