"""Request to the renderer, and its result."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from acestep.renderer.prompts import CODES_INSTRUCTION, task_instruction
from acestep.types import (
    FRAMES_PER_CODE,
    FRAMES_PER_SECOND,
    SAMPLES_PER_FRAME,
    AdapterScale,
    RepaintMode,
    SamplerSettings,
    SongMetadata,
    TaskType,
    VaeDecoding,
)

if TYPE_CHECKING:
    import torch

    from acestep.renderer.source import Source


@dataclass(frozen=True, slots=True)
class RenderRequest:
    """Songs that differ only in their seeds and audio codes; ``acestep.resolution`` has checked every value.

    Attributes:
        caption: what the music should be like.
        lyrics: the words, with section tags; ``[Instrumental]`` for none.
        metadata: in the prompt of the text encoder; its own ``caption`` and ``duration`` are not used.
        duration: seconds; with audio codes or a source the length is theirs, and this should be equal to it.
        codes: one sequence of audio codes per song, equally long; empty sequences render from text alone.
        seeds: one per song.
        steps: diffusion steps.
        shift: timestep shift.
        guidance_scale: classifier-free guidance; 1 is off, and turbo models have it off.
        guidance_interval: the range of t in which guidance is applied.
        peak_dbfs: level of the loudest sample of each song; ``None`` only prevents clipping. A repainted song keeps
            the level of its source.
        task: what to do; every task but ``text2music`` works on a source.
        source: the recording to work on.
        reference: a recording whose timbre the songs should have, float32 on the host, shape ``[2, samples]``, 48 kHz.
        track_names: tracks that the task is about.
        cover_strength: share of the steps that follow the source (``cover``) or the codes; the others follow the text.
        retake_seeds: one per song, of the noise that is mixed in; empty for none.
        retake_variance: how much of it.
        cover_noise_strength: 0 starts from noise; towards 1 the start is nearer to the source.
        timesteps: times to evaluate instead of ``steps`` and ``shift``; empty for none.
        use_adg: guide by angles.
        sampler: how the latents are sampled.
        repaint_mode: how closely a repaint follows its source.
        repaint_strength: of mode ``balanced``.
        adapters: of the transformer.
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
    task: TaskType = "text2music"
    source: Source | None = None
    reference: torch.Tensor | None = None
    track_names: tuple[str, ...] = ()
    cover_strength: float = 1.0
    retake_seeds: tuple[int, ...] = ()
    retake_variance: float = 0.0
    cover_noise_strength: float = 0.0
    timesteps: tuple[float, ...] = ()
    use_adg: bool = False
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    repaint_mode: RepaintMode = "balanced"
    repaint_strength: float = 0.5
    adapters: tuple[AdapterScale, ...] = ()

    @property
    def has_codes(self) -> bool:
        """Whether the songs follow audio codes."""
        return len(self.codes[0]) > 0

    @property
    def frames(self) -> int:
        """Latent frames of a song: five per audio code, else 25 per second, a started frame counting as one."""
        if self.has_codes:
            return FRAMES_PER_CODE * len(self.codes[0])
        if self.source is not None:
            return math.ceil(self.source.samples / SAMPLES_PER_FRAME)
        # Decimal durations such as 16.44 s are not exact in binary: 411.00000000000006 frames are 411.
        return math.ceil(round(self.duration * FRAMES_PER_SECOND, 6))

    @property
    def instruction(self) -> str:
        """The instruction of the task that the text encoder reads."""
        return CODES_INSTRUCTION if self.has_codes else task_instruction(self.task, self.track_names)

    @property
    def cover_steps(self) -> int:
        """Steps before the text alone is followed: the whole part of ``steps * cover_strength``."""
        return int(self.steps * self.cover_strength)


@dataclass(frozen=True, slots=True)
class Rendering:
    """Finished audio and what was run for it.

    Attributes:
        audio: float32 on the host, shape ``[songs, 2, samples]``, 48 kHz, within -1 ... 1.
        steps: diffusion steps executed.
        guidance_scale: guidance applied; 1 when it was off.
        vae_decode: how the latents were decoded.
    """

    audio: torch.Tensor
    steps: int
    guidance_scale: float
    vae_decode: VaeDecoding
