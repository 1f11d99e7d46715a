"""Which ways to decode are tried, in which order, when memory may not suffice.

First the longest tile that the free memory should hold, then shorter ones, then the shortest with the audio collected
on the host, and last the host itself. Every way gives the same audio up to rounding, because tiles overlap by the
decoder's receptive field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from acestep.renderer.vae import DEFAULT_TILE_LENGTH, TilePlan, plan_tiles
from acestep.types import SAMPLES_PER_FRAME, VaeLocation

TILE_LENGTHS: Final = (1024, 512, 256, 128, 64)
"""Tile lengths to choose from; fallbacks go through them from the longest to the shortest."""
SHORTEST_TILE: Final = 32
"""Shortest tile length that can be requested; more than half of a shorter one would be overlap."""
_LIVE_ACTIVATIONS: Final = 6
"""Tensors of the decoder's widest kind (its base width at the audio's rate) that are alive at its peak, compiled; 5.5
eagerly (``benchmarks/vae_decode.py`` on an H100, bfloat16)."""
_LIVE_ACTIVATIONS_FUSED: Final = 4
"""The same in the engine's kernels."""
_SHARE: Final = 0.5
"""Share of the free memory for a tile: the estimate is rough, and other code allocates too."""


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """How the VAE is to decode.

    Attributes:
        on_cpu: decode on the host.
        tile_length: first tile length to try, in latent frames; ``None`` selects it by the free memory.
    """

    on_cpu: bool = False
    tile_length: int | None = None


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """One way to decode.

    Attributes:
        location: where decoding runs.
        plan: its tiles.
    """

    location: VaeLocation
    plan: TilePlan


def decode_fallbacks(
    frames: int,
    overlap: int,
    *,
    device: torch.device,
    settings: DecodeSettings,
    free_bytes: int | None = None,
    bytes_per_frame: int = 0,
) -> tuple[DecodeStep, ...]:
    """The ways to try, in order; no tiling is tried twice.

    Args:
        frames: latent frames of the song.
        overlap: frames of context on each inner side of a tile.
        device: where models run.
        settings: the requested settings.
        free_bytes: memory that can still be allocated; ``None`` where that is not known.
        bytes_per_frame: memory that decoding takes per frame of a tile.
    """
    first = settings.tile_length or fitting_tile_length(free_bytes, bytes_per_frame)
    on_host = DecodeStep("cpu", plan_tiles(frames, settings.tile_length or DEFAULT_TILE_LENGTH, overlap))
    if device.type == "cpu" or settings.on_cpu:
        return (on_host,)
    lengths = [first, *(length for length in TILE_LENGTHS if length < first)]
    plans = list(dict.fromkeys(plan_tiles(frames, length, overlap) for length in lengths))
    return (*(DecodeStep("gpu", plan) for plan in plans), DecodeStep("gpu+cpu buffer", plans[-1]), on_host)


def fitting_tile_length(free_bytes: int | None, bytes_per_frame: int) -> int:
    """The longest of ``TILE_LENGTHS`` that should fit; the shortest when none should, so that it is at least tried."""
    if free_bytes is None:
        return DEFAULT_TILE_LENGTH
    affordable = _SHARE * free_bytes
    return next((length for length in TILE_LENGTHS if length * bytes_per_frame <= affordable), TILE_LENGTHS[-1])


def decode_bytes_per_frame(base_width: int, dtype: torch.dtype, *, fused: bool = False) -> int:
    """Memory that the Oobleck decoder's activations take per latent frame.

    They peak at the audio's rate, where the decoder is ``base_width`` channels wide.
    """
    live = _LIVE_ACTIVATIONS_FUSED if fused else _LIVE_ACTIVATIONS
    return live * base_width * SAMPLES_PER_FRAME * dtype.itemsize
