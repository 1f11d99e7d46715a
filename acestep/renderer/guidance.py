"""Guidance of the models that were not distilled: Adaptive Projected Guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from acestep.errors import InvalidRequest

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

    Raises:
        InvalidRequest: an interval that is not within 0 ... 1.
    """

    scale: float
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        start, end = self.interval
        if not 0.0 <= start <= end <= 1.0:
            raise InvalidRequest(f"guidance interval must satisfy 0 <= start <= end <= 1, not {start} ... {end}")

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
