"""GPU tiers: what a card of some memory is expected to run. The only place with tier numbers.

A tier is chosen by the card's total memory in GiB. Drivers reserve a part of it, so real cards report slightly less
than their nominal size ("8 GB" is 7.6 to 8.0 GiB): a card counts as a size that it falls short of by at most
``TOLERANCE_GIB``. The boundaries at 4 and 6 are upper bounds; a card that reports less is below them anyway, so they
need no tolerance.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import torch

from acestep.errors import InvalidRequest
from acestep.types import Placement

TOLERANCE_GIB: Final = 0.5
"""How much less than its nominal size a card may report."""

TierName = Literal["tier1", "tier2", "tier3", "tier4", "tier5", "tier6a", "tier6b", "unlimited"]

XLSupport = Literal["no", "marginal", "offload", "yes"]
"""What the model's authors say of the XL models (4 billion parameters) on a tier: not supported; only with offload,
quantisation and few songs at once; with offload; without restriction."""

_GIB: Final = 2**30
_XL_NAME: Final = re.compile(r"(?<![a-z])xl(?![a-z])", re.IGNORECASE)
"""Pattern of such a model's name: ``acestep-v15-xl-turbo``."""
_LM_SIZES: Final = ("0.6B", "1.7B", "4B")


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that a tier is expected to generate at once.

    Attributes:
        duration: seconds of each song.
        batch_size: songs.
    """

    duration: int
    batch_size: int


@dataclass(frozen=True, slots=True)
class GPUConfig:
    """One tier.

    Attributes:
        tier: its name.
        smallest: memory in GiB at which the tier begins: nominal for cards, before the tolerance is subtracted.
        smallest_included: whether a card of exactly ``smallest`` belongs to it. Where it does, the tolerance applies.
        with_lm: limits while a language model is loaded.
        without_lm: limits without one.
        lm_sizes: sizes of the language model that fit; none where the tier is better off without one.
        recommended_lm: the size to take, or ``None``.
        offload_to_cpu: whether models should be kept in host memory while they are not in use.
        offload_dit_to_cpu: the same for the diffusion transformer.
        int8: whether weights should be quantised to int8.
        xl: whether it runs the XL diffusion models.
    """

    tier: TierName
    smallest: float
    smallest_included: bool
    with_lm: Limits
    without_lm: Limits
    lm_sizes: tuple[str, ...]
    recommended_lm: str | None
    offload_to_cpu: bool
    offload_dit_to_cpu: bool
    int8: bool
    xl: XLSupport

    def supports(self, dit: str) -> bool:
        """Whether the model's authors support a diffusion model, by its name or path, on such a card."""
        return self.xl != "no" or _XL_NAME.search(Path(dit).name) is None

    def limits(self, *, with_lm: bool) -> Limits:
        """Limits of a run with, or without, a language model in memory."""
        return self.with_lm if with_lm else self.without_lm

    def placement(self, *, skip_compile: bool = False) -> Placement:
        """How models are placed on such a card; compilation can be skipped where nothing is quantised."""
        return Placement(
            offload_to_cpu=self.offload_to_cpu,
            offload_dit_to_cpu=self.offload_dit_to_cpu,
            quantization="int8_weight_only" if self.int8 else None,
            compile=self.int8 or not skip_compile,
            automatic_offload=self.offload_to_cpu,
        )

    def holds(self, memory: float) -> bool:
        """Whether the tier begins at or below a card's memory in GiB."""
        if self.smallest_included:
            return memory >= self.smallest - TOLERANCE_GIB
        return memory > self.smallest


GPU_CONFIGS: Final = (
    GPUConfig("tier1", 0, False, Limits(240, 1), Limits(480, 4), (), None, True, True, True, "no"),
    GPUConfig("tier2", 4, False, Limits(480, 1), Limits(600, 8), (), None, True, True, True, "no"),
    GPUConfig("tier3", 6, False, Limits(480, 2), Limits(600, 8), _LM_SIZES[:1], "0.6B", True, True, True, "no"),
    GPUConfig("tier4", 8, True, Limits(480, 2), Limits(600, 8), _LM_SIZES[:1], "0.6B", True, True, True, "no"),
    GPUConfig("tier5", 12, True, Limits(480, 4), Limits(600, 8), _LM_SIZES[:2], "1.7B", True, False, True, "marginal"),
    GPUConfig("tier6a", 16, True, Limits(480, 4), Limits(600, 8), _LM_SIZES[:2], "1.7B", True, False, True, "offload"),
    GPUConfig("tier6b", 20, True, Limits(480, 4), Limits(600, 8), _LM_SIZES, "1.7B", False, False, False, "yes"),
    GPUConfig("unlimited", 24, True, Limits(600, 4), Limits(600, 8), _LM_SIZES, "4B", False, False, False, "yes"),
)
"""Every tier, smallest first. Where the limits come from is in ``docs/tiers.md``."""

_NO_GPU: Final = replace(GPU_CONFIGS[0], smallest=-math.inf, without_lm=Limits(360, 1))
"""Without a GPU, memory does not limit a song, and generating songs together only takes longer."""


def gpu_config(memory: float) -> GPUConfig:
    """The tier of a card.

    Args:
        memory: total memory in GiB; 0 without a GPU, which is the smallest tier with one song at a time.

    Raises:
        InvalidRequest: not a number.
    """
    if math.isnan(memory):
        raise InvalidRequest("a GPU memory of nan GiB has no tier")
    return [config for config in (_NO_GPU, *GPU_CONFIGS) if config.holds(memory)][-1]


def detect_gpu_memory(device: torch.device) -> float:
    """Memory in GiB that decides the tier.

    Args:
        device: CUDA: total memory of the card. MPS: what the system recommends as the most to use. CPU: 0.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / _GIB
    if device.type == "mps":
        return torch.mps.recommended_max_memory() / _GIB
    return 0.0


def needs_offload(memory: float) -> bool:
    """Whether models are offloaded to host memory by default: on every GPU that counts as less than 20 GB.

    Args:
        memory: total memory in GiB; 0 without a GPU, where there is nothing to offload.
    """
    return memory > 0 and gpu_config(memory).offload_to_cpu
