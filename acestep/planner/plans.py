"""Request to the planner, and its result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from acestep.planner.backends import PhaseTokens
from acestep.planner.metadata import UNKNOWN_LANGUAGE
from acestep.types import GenerationRequest, SamplingSettings, SongMetadata


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """A request to the planner; every value is in its range.

    Attributes:
        caption: what the music should be like.
        lyrics: the words.
        given: the user's values in the model's spelling; they are forced.
        duration: seconds, possibly fractional; ``None`` leaves it to the model.
        seeds: one per song, at least one.
        sampling: how the model samples.
        writes_audio_codes: whether phase 2 runs.
        use_cot_metas: let the model decide open metadata.
        use_cot_caption: let it rewrite the caption.
        use_cot_language: let it detect the language.
        use_constrained_decoding: constrain the metadata to its grammar.
    """

    caption: str
    lyrics: str
    given: SongMetadata
    duration: float | None
    seeds: tuple[int, ...]
    sampling: SamplingSettings
    writes_audio_codes: bool
    use_cot_metas: bool
    use_cot_caption: bool
    use_cot_language: bool
    use_constrained_decoding: bool

    @classmethod
    def of(
        cls, request: GenerationRequest, metadata: SongMetadata, duration: float | None, seeds: Sequence[int]
    ) -> Self:
        """The part of a request that concerns the planner.

        Args:
            request: as given.
            metadata: of the user, in the model's spelling.
            duration: seconds that are fixed.
            seeds: one per song.
        """
        return cls(
            caption=request.caption,
            lyrics=request.lyrics,
            given=forced_metadata(metadata, duration),
            duration=duration,
            seeds=tuple(seeds),
            sampling=request.sampling,
            writes_audio_codes=request.writes_audio_codes,
            use_cot_metas=request.use_cot_metas,
            use_cot_caption=request.use_cot_caption,
            use_cot_language=request.use_cot_language,
            use_constrained_decoding=request.use_constrained_decoding,
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What the renderer needs from the planner.

    Attributes:
        metadata: the user's values, completed by the values that the language model had to choose. ``caption`` is the
            rewritten caption, ``None`` if the user's is kept.
        codes: audio codes, one series per song; empty without ``thinking``.
        metadata_tokens: of phase 1; ``None`` when it did not run.
        code_tokens: of phase 2; ``None`` when it did not run.
    """

    metadata: SongMetadata
    codes: tuple[tuple[int, ...], ...] = ()
    metadata_tokens: PhaseTokens | None = None
    code_tokens: PhaseTokens | None = None

    @property
    def phases(self) -> tuple[PhaseTokens, ...]:
        """The phases that ran, in order."""
        return tuple(phase for phase in (self.metadata_tokens, self.code_tokens) if phase is not None)


@dataclass(frozen=True, slots=True)
class CodesTask:
    """What phase 2 has to do.

    Attributes:
        conditional: the prompt.
        unconditional: the prompt of the guidance; ``None`` without guidance.
        count: codes per song.
    """

    conditional: list[int]
    unconditional: list[int] | None
    count: int

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the conditional prompt."""
        return len(self.conditional)

    @property
    def middle_context(self) -> int:
        """Positions in the cache half-way through the codes."""
        return self.prompt_tokens + self.count // 2


def forced_metadata(metadata: SongMetadata, duration: float | None) -> SongMetadata:
    """The user's values as the model must write them.

    Args:
        metadata: in the model's spelling; the caption is omitted.
        duration: seconds, possibly fractional; ``None`` leaves it open.
    """
    # "unknown" means that the user left the language open.
    language = None if metadata.language == UNKNOWN_LANGUAGE else metadata.language
    return replace(metadata, caption=None, duration=None if duration is None else int(duration), language=language)
