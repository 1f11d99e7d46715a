"""The parts of the diffusion outside the transformer: the times of its evaluation, and guidance.

Models that were not distilled are guided: by Adaptive Projected Guidance, or by angles (ADG).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch


@dataclass(frozen=True, slots=True)
class DenoisingStep:
    """One evaluation of the transformer.

    Attributes:
        index: number of the step, from 0.
        timestep: t at its start.
        next_timestep: t at its end.
    """

    index: int
    timestep: float
    next_timestep: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """The times of one diffusion run, from noise (t = 1) towards data (t = 0).

    Attributes:
        timesteps: where the velocity is evaluated, falling from 1; the terminal 0 is not among them.
        shift: the timestep shift that they were made with.
    """

    timesteps: tuple[float, ...]
    shift: float

    @property
    def steps(self) -> tuple[DenoisingStep, ...]:
        """Every step in order; the last one ends at 0."""
        times = zip(self.timesteps, (*self.timesteps[1:], 0.0), strict=True)
        return tuple(DenoisingStep(index, start, end) for index, (start, end) in enumerate(times))

    def from_level(self, level: float) -> Schedule:
        """The schedule from the time on that is nearest to a noise level."""
        return Schedule(self.timesteps[self.timesteps.index(_nearest(self.timesteps, level)) :], self.shift)


def _nearest(times: Sequence[float], time: float) -> float:
    return min(times, key=lambda known: abs(known - time))


def make_schedule(steps: int, shift: float) -> Schedule:
    """Uniform times, bent towards the noisy end by the flow-matching shift.

    With ``u = 1 - i / steps`` the times are ``shift * u / (1 + (shift - 1) * u)`` (Esser et al. 2024, "Scaling
    Rectified Flow Transformers", section 5.3.2). Eight steps give the tables that the turbo models were distilled on.

    Args:
        steps: how many times the transformer is evaluated, 1 or more.
        shift: more than 0; 1 leaves the times uniform.
    """
    uniform = ((steps - i) / steps for i in range(steps))
    return Schedule(tuple(shift * u / (1 + (shift - 1) * u) for u in uniform), shift)


TURBO_TIMESTEPS: Final = tuple(
    sorted({time for shift in (1.0, 2.0, 3.0) for time in make_schedule(8, shift).timesteps}, reverse=True)
)
"""Times that the turbo models were distilled on: eight steps at the shifts 1, 2 and 3."""


def custom_schedule(timesteps: Sequence[float], shift: float, *, is_turbo: bool) -> Schedule:
    """A schedule of times that the user gave.

    Args:
        timesteps: falling, within 0 ... 1; a last 0 is the end of the last step.
        shift: of the request; recorded, and not applied.
        is_turbo: whether the model is distilled: each time is then moved to the nearest of ``TURBO_TIMESTEPS``.
    """
    times = [time for time in timesteps if time > 0]
    if is_turbo:
        times = [_nearest(TURBO_TIMESTEPS, time) for time in times]
    return Schedule(tuple(times), shift)


MOMENTUM: Final = -0.75
"""Weight of the earlier differences; negative, so that a direction repeated at every step is damped."""
NORM_THRESHOLD: Final = 2.5
"""Bound on the norm of the difference (over time, per channel)."""
TIME_DIMENSION: Final = 1


@dataclass(frozen=True, slots=True)
class Guidance:
    """How strongly, and when, the conditions are emphasised.

    Attributes:
        scale: how far past the conditional prediction to go; 1 is off.
        interval: the range of t, both ends included, in which guidance is applied (Kynkäänniemi et al. 2024).
        by_angle: guide by angles (ADG) instead of projections (APG).
    """

    scale: float
    interval: tuple[float, float] = (0.0, 1.0)
    by_angle: bool = False

    def applies_at(self, timestep: float) -> bool:
        """Whether guidance is on at time t."""
        start, end = self.interval
        return start <= timestep <= end

    def begin(self) -> Projection:
        """The guidance of one request."""
        return AngleGuidance(self.scale) if self.by_angle else AdaptiveProjectedGuidance(self.scale)


class Projection(Protocol):
    """Combines the conditional and the unconditional velocity of a step."""

    def combine(
        self, conditional: torch.Tensor, unconditional: torch.Tensor, latents: torch.Tensor, timestep: float
    ) -> torch.Tensor:
        """The guided velocity; every tensor is float32, shape ``[songs, frames, channels]``."""

    def combine_again(
        self, conditional: torch.Tensor, unconditional: torch.Tensor, latents: torch.Tensor, timestep: float
    ) -> torch.Tensor:
        """The same for a second evaluation within the step, which no later step builds on."""


def classifier_free(conditional: torch.Tensor, unconditional: torch.Tensor, scale: float) -> torch.Tensor:
    """Plain classifier-free guidance (Ho and Salimans 2022)."""
    return unconditional + scale * (conditional - unconditional)


class AdaptiveProjectedGuidance:
    """Combines conditional and unconditional velocities over the steps of one request.

    Sadat et al. 2024, "Eliminating Oversaturation and Artifacts of High Guidance Scales", with the norms taken over
    time only, as ACE-Step does. Only the part of the difference that is orthogonal to the conditional prediction is
    added. The running difference belongs to one request: create an instance for each.

    Args:
        scale: guidance scale, more than 1.
    """

    def __init__(self, scale: float) -> None:
        self._scale = scale
        self._running_difference: torch.Tensor | None = None

    def combine_again(
        self,
        conditional: torch.Tensor,
        unconditional: torch.Tensor,
        latents: torch.Tensor,  # noqa: ARG002 - of the protocol
        timestep: float,  # noqa: ARG002 - of the protocol
    ) -> torch.Tensor:
        """Plain guidance, so that the running difference is updated only once per step."""
        return classifier_free(conditional, unconditional, self._scale)

    def combine(
        self,
        conditional: torch.Tensor,
        unconditional: torch.Tensor,
        latents: torch.Tensor | None = None,  # noqa: ARG002 - of the protocol
        timestep: float | None = None,  # noqa: ARG002 - of the protocol
    ) -> torch.Tensor:
        """The guided velocity.

        Args:
            conditional: float32, shape ``[batch, frames, channels]``.
            unconditional: the same without the conditions.
            latents: not used.
            timestep: not used.

        Returns:
            float32, the same shape.
        """
        difference = conditional - unconditional
        if self._running_difference is not None:
            difference = difference + MOMENTUM * self._running_difference
        self._running_difference = difference
        norm = difference.norm(dim=TIME_DIMENSION, keepdim=True)
        difference = difference * (NORM_THRESHOLD / norm).clamp(max=1.0)
        direction = torch.nn.functional.normalize(conditional, dim=TIME_DIMENSION)
        parallel = (difference * direction).sum(dim=TIME_DIMENSION, keepdim=True) * direction
        guided: torch.Tensor = conditional + (self._scale - 1.0) * (difference - parallel)
        return guided


class AngleGuidance:
    """Guidance by the angle between the two predicted songs, frame by frame (ADG).

    The conditional song is rotated away from the unconditional one by a bounded angle, so its norm does not change. As
    in the reference: the bound is 3.14 / 6, and the unconditional prediction spans the plane.

    Args:
        scale: guidance scale, more than 1.
    """

    ANGLE_LIMIT: Final = 3.14 / 6
    _SMALLEST_SINE: Final = 1e-3

    def __init__(self, scale: float) -> None:
        self._scale = scale

    def combine_again(
        self, conditional: torch.Tensor, unconditional: torch.Tensor, latents: torch.Tensor, timestep: float
    ) -> torch.Tensor:
        """The same, and plain guidance at t = 0, where there is no angle."""
        if timestep <= 0:
            return classifier_free(conditional, unconditional, self._scale)
        return self.combine(conditional, unconditional, latents, timestep)

    def combine(
        self, conditional: torch.Tensor, unconditional: torch.Tensor, latents: torch.Tensor, timestep: float
    ) -> torch.Tensor:
        """The guided velocity, float32, shape ``[songs, frames, channels]``."""
        weight = max(self._scale - 1.0, 0.0) + 1e-3
        song, other = latents - timestep * conditional, latents - timestep * unconditional
        cosine = torch.nn.functional.cosine_similarity(song.double(), other.double(), dim=-1)
        angle = cosine.clamp(-1.0 + 1e-6, 1.0 - 1e-6).acos().unsqueeze(-1)
        turned = (weight * angle).clamp(-self.ANGLE_LIMIT, self.ANGLE_LIMIT)
        difference = song - other
        along = (difference * other).sum(-1, keepdim=True) / ((other * other).sum(-1, keepdim=True) + 1e-8)
        across = difference - along * other
        sine = angle.sin()
        turn = torch.where(sine > self._SMALLEST_SINE, turned.sin() / sine, weight)
        guided = turned.cos() * song + turn * across
        velocity: torch.Tensor = ((latents - guided) / timestep).float()
        return velocity
