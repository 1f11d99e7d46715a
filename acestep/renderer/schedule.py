"""At which times the diffusion is evaluated."""

from __future__ import annotations

import math
from dataclasses import dataclass

from acestep.errors import InvalidRequest


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
    def intervals(self) -> tuple[tuple[float, float], ...]:
        """``(t, next t)`` of every step; the last one ends at 0."""
        return tuple(zip(self.timesteps, (*self.timesteps[1:], 0.0), strict=True))


def make_schedule(steps: int, shift: float) -> Schedule:
    """Uniform times, bent towards the noisy end by the flow-matching shift.

    With ``u = 1 - i / steps`` the times are ``shift * u / (1 + (shift - 1) * u)`` (Esser et al. 2024, "Scaling
    Rectified Flow Transformers", section 5.3.2). Eight steps give the tables that the turbo models were distilled on.

    Args:
        steps: how many times the transformer is evaluated, 1 or more.
        shift: more than 0; 1 leaves the times uniform.

    Raises:
        InvalidRequest: a value outside these ranges.
    """
    if steps < 1:
        raise InvalidRequest(f"inference steps must be 1 or more, not {steps}")
    if not (math.isfinite(shift) and shift > 0):
        raise InvalidRequest(f"timestep shift must be a number above 0, not {shift}")
    uniform = ((steps - i) / steps for i in range(steps))
    return Schedule(tuple(shift * u / (1 + (shift - 1) * u) for u in uniform), shift)


def trained_shift(name: str, *, is_turbo: bool) -> float:
    """Timestep shift that a released model was trained for; its configuration does not say.

    Args:
        name: of the model; ``acestep-v15-turbo-shift1`` is the one turbo model that was distilled on uniform times.
        is_turbo: whether guidance is distilled into the weights; models that are not were trained on uniform times.
    """
    return 3.0 if is_turbo and "shift1" not in name else 1.0
