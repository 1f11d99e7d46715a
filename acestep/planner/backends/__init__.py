"""What the planner asks of a backend: three phases, as token ids in and token ids out.

A backend owns the forward passes, the guidance and the sampling. It needs no hidden states or logits at this
boundary, so engines that keep these to themselves fit too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, Self

from acestep.planner.grammar import GrammarCursor
from acestep.types import ProgressCallback, SamplingSettings

REASONING: Final = "lm.cot"
COMPOSING: Final = "lm.codes"
LYRICS: Final = "lm.lyrics"
PROGRESS_INTERVAL: Final = 32
"""Codes between two reports; a report may have to wait for the device."""


@dataclass(frozen=True, slots=True)
class EngineTimes:
    """What an engine measured about a phase by itself: seconds, of the slowest of its requests.

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
        forced_tokens: tokens that the grammar left no choice about.
        unconditional_tokens: prompt and output of the unconditional rows; 0 without guidance.
        forwards: forward passes, the one over the prompts included.
        reused_tokens: of the prompt's, those that an earlier phase had run and this one did not run again.
        engine_times: the engine's own timings; ``None`` where the backend is no engine of its own.
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
        """A phase that wrote one text without guidance; what was not sampled, the grammar forced."""
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
        """A phase that wrote as many codes for each song; with guidance an unconditional row saw each of them too."""
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


class PlannerBackend(Protocol):
    """Runs the language model."""

    @property
    def name(self) -> str:
        """``pt``, ``vllm`` or ``mlx``."""

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
            progress: told about every sampled token.

        Raises:
            InvalidOutput: the model produced NaN or infinity.
            BackendFailed: the engine did not do what it was asked to.
        """

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
            progress: told about every sampled token.

        Returns:
            Tokens whose last one is the end of the turn, unless ``token_limit`` came first.

        Raises:
            InvalidOutput: the model produced NaN or infinity.
            BackendFailed: the engine did not do what it was asked to.
        """

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
            progress: told about codes per song, in steps.

        Raises:
            InvalidOutput: the model produced NaN or infinity.
            BackendFailed: the engine did not do what it was asked to.
        """

    def unload(self) -> None:
        """Free the model's memory; the backend cannot be used afterwards. Unloading twice is fine."""
