"""Backends run the language model: three phases, as token ids in and token ids out.

Read in this order: ``base`` defines what a backend is, ``choices`` which tokens a pass may draw and when a text ends,
``candidates`` how PyTorch draws them. Then the three backends, ``pt``, ``mlx`` and ``vllm``, and ``registry``, which
starts one of them by name.
"""

from acestep.planner.backends.base import PlannerBackend
from acestep.planner.backends.phases import (
    COMPOSING,
    LYRICS,
    PROGRESS_INTERVAL,
    REASONING,
    CodesPhase,
    EngineTimes,
    PhaseTokens,
    TextPhase,
)

__all__ = [
    "COMPOSING",
    "LYRICS",
    "PROGRESS_INTERVAL",
    "REASONING",
    "CodesPhase",
    "EngineTimes",
    "PhaseTokens",
    "PlannerBackend",
    "TextPhase",
]
