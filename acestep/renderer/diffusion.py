"""The diffusion beside the transformer: at which times it is evaluated, and how its conditions are emphasised.

Models that were not distilled are guided by Adaptive Projected Guidance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

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


MOMENTUM: Final = -0.75
"""Weight of the earlier differences; negative, so that a direction repeated at every step is damped."""
NORM_THRESHOLD: Final = 2.5
"""Longest difference (over time, per channel) that is let through."""
TIME_DIMENSION: Final = 1


@dataclass(frozen=True, slots=True)
class Guidance:
    """How strongly, and when, the conditions are emphasised.

    Attributes:
        scale: how far past the conditional prediction to go; 1 is off.
        interval: the range of t, both ends included, in which guidance is applied (Kynkäänniemi et al. 2024).
    """

    scale: float
    interval: tuple[float, float] = (0.0, 1.0)

    def applies_at(self, timestep: float) -> bool:
        """Whether guidance is on at time t."""
        start, end = self.interval
        return start <= timestep <= end


class AdaptiveProjectedGuidance:
    """Combines conditional and unconditional velocities over the steps of one request.

    Sadat et al. 2024, "Eliminating Oversaturation and Artifacts of High Guidance Scales", with the norms taken over
    time only, as ACE-Step does. Only the part of the difference that is orthogonal to the conditional prediction is
    added. The running difference belongs to one request: make one instance for each.

    Args:
        scale: guidance scale, more than 1.
    """

    def __init__(self, scale: float) -> None:
        self._scale = scale
        self._running_difference: torch.Tensor | None = None

    def combine(self, conditional: torch.Tensor, unconditional: torch.Tensor) -> torch.Tensor:
        """The guided velocity.

        Args:
            conditional: float32, shape ``[batch, frames, channels]``.
            unconditional: the same without the conditions.

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
