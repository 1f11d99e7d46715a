"""What the renderer is asked for and what it hands back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from acestep.errors import InvalidRequest
from acestep.types import AUDIO_CODE_COUNT, FRAMES_PER_CODE, FRAMES_PER_SECOND, SongMetadata

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class RenderRequest:
    """Songs that differ only in their seeds and audio codes.

    Attributes:
        caption: what the music should be like.
        lyrics: the words, with section tags; ``[Instrumental]`` for none.
        metadata: told to the text encoder; its own ``caption`` and ``duration`` are not used.
        duration: seconds; with audio codes the length is theirs, and this should say the same.
        codes: one sequence of audio codes per song, equally long; empty sequences render from text alone.
        seeds: one per song.
        steps: diffusion steps.
        shift: timestep shift.
        guidance_scale: classifier-free guidance; 1 is off, and turbo models have it off.
        guidance_interval: the range of t in which guidance is applied.
        peak_dbfs: level of the loudest sample of each song; ``None`` only prevents clipping.

    Raises:
        InvalidRequest: no seed, no length, codes that do not fit the seeds or each other, or no such code.
    """

    caption: str
    lyrics: str
    metadata: SongMetadata
    duration: float
    codes: tuple[tuple[int, ...], ...]
    seeds: tuple[int, ...]
    steps: int
    shift: float
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    peak_dbfs: float | None = -1.0

    def __post_init__(self) -> None:
        if not self.seeds:
            raise InvalidRequest("at least one seed is needed: one per song")
        if len(self.codes) != len(self.seeds):
            raise InvalidRequest(f"{len(self.codes)} sequences of audio codes do not fit {len(self.seeds)} seeds")
        lengths = sorted({len(codes) for codes in self.codes})
        if len(lengths) > 1:
            raise InvalidRequest(f"the songs of a batch need equally many audio codes, not {lengths}")
        for code in (code for codes in self.codes for code in codes):
            if not 0 <= code < AUDIO_CODE_COUNT:
                raise InvalidRequest(f"audio code {code} is not within 0 ... {AUDIO_CODE_COUNT - 1}")
        if not (math.isfinite(self.duration) and self.frames > 0):
            raise InvalidRequest(f"duration must be more than 0 s, not {self.duration}")

    @property
    def has_codes(self) -> bool:
        """Whether the songs follow audio codes."""
        return len(self.codes[0]) > 0

    @property
    def frames(self) -> int:
        """Latent frames of a song: five per audio code, else 25 per second, a started frame counting as one."""
        if self.has_codes:
            return FRAMES_PER_CODE * len(self.codes[0])
        # Decimal durations such as 16.44 s are not exact in binary: 411.00000000000006 frames are 411.
        return math.ceil(round(self.duration * FRAMES_PER_SECOND, 6))


@dataclass(frozen=True, slots=True)
class Rendering:
    """Finished audio and what was really run for it.

    Attributes:
        audio: float32 on the host, shape ``[songs, 2, samples]``, 48 kHz, within -1 ... 1.
        steps: diffusion steps executed.
        guidance_scale: guidance applied; 1 when it was off.
    """

    audio: torch.Tensor
    steps: int
    guidance_scale: float
