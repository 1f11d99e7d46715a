"""How the diffusion steps from one time to the next: the solver, and what corrects its velocity and its latents.

The order within a step is that of the reference (ACE-Step 1.5, 1 May 2026): guidance, norm bound, smoothing, the
solver's update, the differential correction, and the source outside a repainted window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from acestep.renderer.diffusion import DenoisingStep
from acestep.types import RepaintMode, SamplerSettings

_SMALLEST_NORM: Final = 1e-10
_CROSSFADE_FRAMES: Final = 25
"""Latent frames over which a conservative repaint fades into its source (1 s)."""


@dataclass(frozen=True, slots=True)
class RepaintSettings:
    """How closely a repaint follows its source.

    Attributes:
        injected: share of the steps, from the first, after which the source is restored outside the window.
        crossfade_frames: latent frames outside the window over which the result fades into the source.
        crossfade_seconds: the same for the audio.
    """

    injected: float
    crossfade_frames: int
    crossfade_seconds: float

    @classmethod
    def of(cls, mode: RepaintMode, strength: float) -> RepaintSettings:
        """The settings of a mode.

        Args:
            mode: ``balanced`` alone reads the strength.
            strength: 0 is equal to ``conservative``, 1 to ``aggressive``.
        """
        if mode == "aggressive":
            return cls(0.0, 0, 0.0)
        kept = 1.0 if mode == "conservative" else 1.0 - strength
        return cls(kept, round(_CROSSFADE_FRAMES * kept), 0.05 * kept)


@dataclass(frozen=True, slots=True)
class Repaint:
    """The source that a repaint follows.

    Attributes:
        source: latents of the source, float32, shape ``[1, frames, channels]``.
        window: ``(start, stop)`` of the frames that are generated.
        noise: where the diffusion started, shape ``[songs, frames, channels]``.
        settings: how closely.
    """

    source: torch.Tensor
    window: tuple[int, int]
    noise: torch.Tensor
    settings: RepaintSettings

    def injected(self, latents: torch.Tensor, timestep: float) -> torch.Tensor:
        """The latents with the source, at the noise of time t, outside the window."""
        noisy = timestep * self.noise + (1.0 - timestep) * self.source
        return torch.where(self._mask(latents, 0) > 0, latents, noisy)

    def blended(self, latents: torch.Tensor) -> torch.Tensor:
        """The finished latents, faded into the source outside the window."""
        if not self.settings.crossfade_frames:
            return latents
        mask = self._mask(latents, self.settings.crossfade_frames)
        return mask * latents + (1.0 - mask) * self.source

    def _mask(self, latents: torch.Tensor, fade: int) -> torch.Tensor:
        return window_mask(latents.shape[1], self.window, fade).to(latents.device).view(1, -1, 1)


def window_mask(length: int, window: tuple[int, int], fade: int) -> torch.Tensor:
    """Weights of 1 inside a window, ramps of at most ``fade`` outside it, and 0 elsewhere, float32 on the host."""
    start, stop = max(0, window[0]), min(length, window[1])
    mask = torch.zeros(length)
    mask[start:stop] = 1.0
    if (start, stop) == (0, length):
        return mask
    left, right = min(fade, start), min(fade, length - stop)
    mask[start - left : start] = torch.linspace(0.0, 1.0, left + 2)[1:-1]
    mask[stop : stop + right] = torch.linspace(1.0, 0.0, right + 2)[1:-1]
    return mask


def step_noise(seeds: Sequence[int], shape: Sequence[int]) -> Iterator[torch.Tensor]:
    """Noise of each step after the first draw, float32 on the host, shape ``[songs, frames, channels]``.

    Each song continues the generator that its first noise came from, so a seed gives the same song at every place in a
    batch. (The reference draws from the global generator.)

    Args:
        seeds: one per song.
        shape: of one song, ``[frames, channels]``.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for generator in generators:
        torch.randn(*shape, generator=generator)
    while True:
        yield torch.stack([torch.randn(*shape, generator=generator) for generator in generators])


def retaken(noise: torch.Tensor, other: torch.Tensor, variance: float) -> torch.Tensor:
    """Noise on the way from one draw to another; its variance is that of either.

    Args:
        noise: of the song.
        other: of its retake, the same shape.
        variance: 0 is ``noise``, 1 is ``other``.
    """
    angle = variance * math.pi / 2
    return math.cos(angle) * noise + math.sin(angle) * other


class Sampler:
    """Steps of one request. It keeps the velocity of the previous step, so each request needs its own instance.

    Args:
        settings: how to step.
        steps: of the whole run.
        is_turbo: whether the model is distilled: its last step is a single evaluation, and it renews noise by its
            schedule. Other models renew it by even times, whatever their schedule, as the reference does.
        noise: for ``sde``: noise of each step.
        repaint: the source that a repaint follows.
    """

    def __init__(
        self,
        settings: SamplerSettings,
        steps: int,
        *,
        is_turbo: bool,
        noise: Iterator[torch.Tensor] | None = None,
        repaint: Repaint | None = None,
    ) -> None:
        self.settings = settings
        self._steps = steps
        self._is_turbo = is_turbo
        self._noise = noise
        self._repaint = repaint
        self._previous: torch.Tensor | None = None

    def corrects(self, step: DenoisingStep) -> bool:
        """Whether the transformer is evaluated again at the end of a step."""
        return self.settings.corrects_steps and not self._ends_by_itself(step)

    def advance(
        self,
        latents: torch.Tensor,
        velocity: torch.Tensor,
        step: DenoisingStep,
        evaluate: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """The latents at the end of a step.

        Args:
            latents: at its start, float32, shape ``[songs, frames, channels]``.
            velocity: there, guided.
            step: where it starts and ends.
            evaluate: the guided velocity at the end of the step, for the latents that Euler's method predicts there.
        """
        velocity = self._smoothed(self._bounded(velocity, latents), self._previous)
        end, following, used = step.next_timestep, latents, velocity
        if self.settings.infer_method == "sde" and not self._ends_by_itself(step):
            end = step.next_timestep if self._is_turbo else 1.0 - (step.index + 1) / self._steps
            following = self._renewed(latents - step.timestep * velocity, end)
        else:
            length = step.next_timestep - step.timestep
            if self.corrects(step):
                predicted = latents + length * velocity
                second = self._smoothed(self._bounded(evaluate(predicted), predicted), velocity)
                used = (velocity + second) / 2
            following = latents + length * used
        if self.settings.dcw_enabled:
            song = latents - step.timestep * velocity
            following = corrected(following, song, step.timestep, self.settings)
        self._previous = used
        # A distilled model's last step is the song itself: the source is not restored after it.
        repaint = None if self._ends_by_itself(step) else self._repaint
        if repaint is None or step.index >= round(repaint.settings.injected * self._steps):
            return following
        return repaint.injected(following, end)

    def _ends_by_itself(self, step: DenoisingStep) -> bool:
        return self._is_turbo and step.index == self._steps - 1

    def finish(self, latents: torch.Tensor) -> torch.Tensor:
        """The latents after the last step."""
        return latents if self._repaint is None else self._repaint.blended(latents)

    def _bounded(self, velocity: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        threshold = self.settings.velocity_norm_threshold
        if not threshold:
            return velocity
        own = velocity.norm(dim=(1, 2), keepdim=True) + _SMALLEST_NORM
        longest = threshold * (latents.norm(dim=(1, 2), keepdim=True) + _SMALLEST_NORM)
        bounded: torch.Tensor = velocity * (longest / own).clamp(max=1.0)
        return bounded

    def _smoothed(self, velocity: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
        share = self.settings.velocity_ema_factor
        return velocity if not share or before is None else (1.0 - share) * velocity + share * before

    def _renewed(self, song: torch.Tensor, timestep: float) -> torch.Tensor:
        if self._noise is None:
            raise ValueError("sde needs noise for its steps")
        noise = next(self._noise).to(song.device, non_blocking=True)
        return timestep * noise + (1.0 - timestep) * song


def corrected(latents: torch.Tensor, song: torch.Tensor, timestep: float, settings: SamplerSettings) -> torch.Tensor:
    """The differential correction: latents pushed away from the song that the step predicted.

    In the wavelet modes the difference is split into a low and a high band by a one-level Haar transform over time; the
    correction of a pair of frames is ``a * mean`` of their differences and ``b * half their difference``. The low band
    counts early (``a`` falls with t), the high band late.

    Args:
        latents: after the solver's update, float32, shape ``[songs, frames, channels]``.
        song: the clean latents that the step's velocity points to.
        timestep: t at the start of the step.
        settings: mode and strengths.

    Source: Yu et al., "Elucidating the SNR-t Bias of Diffusion Probabilistic Models", arXiv 2604.16044, equations 18
    to 21; over time as ACE-Step does, an odd last frame beside a frame of zeros.
    """
    difference = latents - song
    if settings.dcw_mode == "pix":
        return latents + settings.dcw_scaler * difference
    low, high = _strengths(timestep, settings)
    frames = difference.shape[1]
    padded = torch.nn.functional.pad(difference, (0, 0, 0, frames % 2))
    even, odd = padded[:, 0::2], padded[:, 1::2]
    mean, half = low * (even + odd) / 2, high * (even - odd) / 2
    correction = torch.stack([mean + half, mean - half], dim=2).flatten(1, 2)
    return latents + correction[:, :frames]


def _strengths(timestep: float, settings: SamplerSettings) -> tuple[float, float]:
    """Strengths of the low and the high band."""
    early, late = timestep * settings.dcw_scaler, (1.0 - timestep)
    match settings.dcw_mode:
        case "low":
            return early, 0.0
        case "high":
            return 0.0, late * settings.dcw_scaler
        case _:
            return early, late * settings.dcw_high_scaler
