"""How long audio is cut into tiles for the VAE, without audible joins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch

from acestep.errors import InvalidRequest
from acestep.types import SAMPLES_PER_FRAME

DEFAULT_TILE_LENGTH: Final = 512
"""Latent frames decoded or encoded at once (20.48 s of audio): memory stays the same for songs of any length."""

_EDGE_REACH: Final = 3
"""Neighbours on each side seen by the first and last convolution (kernel 7)."""
_BOTTLENECK_REACH: Final = 1
"""The same for the convolution at the encoder's end (kernel 3)."""
_RESIDUAL_REACH: Final = 3 * (1 + 3 + 9)
"""The same for the three residual units of a block (kernel 7, dilations 1, 3 and 9)."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One call of the decoder or the encoder; both ranges are ``(start, stop)`` in latent frames of the song.

    Attributes:
        window: the frames that are processed.
        kept: the frames whose result is kept; the rest only gives the convolutions their context.
    """

    window: tuple[int, int]
    kept: tuple[int, int]


@dataclass(frozen=True, slots=True)
class TilePlan:
    """How a song is decoded, or a recording encoded, in tiles.

    Attributes:
        frames: latent frames of the song.
        tile_length: frames of every window (of the only one, the song's own length where that is less).
        overlap: frames of context on each side that faces another tile.
        tiles: in order; their kept ranges cover the song exactly once.
    """

    frames: int
    tile_length: int
    overlap: int
    tiles: tuple[Tile, ...]

    def of_songs(self, songs: int) -> tuple[SongTile, ...]:
        """Every tile of some songs, one song after the other."""
        tiles = [(song, tile) for song in range(songs) for tile in self.tiles]
        return tuple(SongTile(index, song, tile.window, tile.kept) for index, (song, tile) in enumerate(tiles))


@dataclass(frozen=True, slots=True)
class SongTile:
    """A tile of one song of a batch.

    Attributes:
        index: number of the tile in the batch, from 0.
        song: number of the song, from 0.
        window: latent frames of the song that are processed.
        kept: those whose result is kept.
    """

    index: int
    song: int
    window: tuple[int, int]
    kept: tuple[int, int]


def plan_tiles(frames: int, tile_length: int, overlap: int) -> TilePlan:
    """Cut a song into windows of one length.

    The last window is moved back rather than shortened: one shape for songs of any length means one compiled graph
    and one set of convolution plans.

    Args:
        frames: latent frames of the song, 1 or more.
        tile_length: frames decoded at once.
        overlap: context on each inner side; ``receptive_radius`` frames make the result equal to one whole decode.

    Raises:
        InvalidRequest: no frames, or a tile that is nothing but overlap.
    """
    if frames < 1:
        raise InvalidRequest(f"a song needs 1 latent frame or more, not {frames}", stage="vae.decode")
    if overlap < 0 or tile_length <= 2 * overlap:
        raise InvalidRequest(
            f"tile length {tile_length} must be more than twice the overlap {overlap}", stage="vae.decode"
        )
    if frames <= tile_length:
        return TilePlan(frames, frames, overlap, (Tile((0, frames), (0, frames)),))
    advance = tile_length - 2 * overlap
    count = 1 + math.ceil((frames - tile_length) / advance)
    tiles: list[Tile] = []
    kept_until = 0
    for index in range(count):
        start = min(index * advance, frames - tile_length)
        stop = start + tile_length
        keep_to = frames if index == count - 1 else stop - overlap
        tiles.append(Tile((start, stop), (kept_until, keep_to)))
        kept_until = keep_to
    return TilePlan(frames, tile_length, overlap, tuple(tiles))


def receptive_radius(upsampling_ratios: Sequence[int]) -> int:
    """Latent frames on each side of a frame that its audio depends on, from the geometry of the Oobleck decoder.

    Walks from the 1,920 samples of one frame back through every convolution. ACE-Step's ratios (10, 6, 4, 4, 2) give
    9 frames, whatever the weights and the widths are.

    Args:
        upsampling_ratios: strides of the decoder's blocks, in the order of the forward pass.
    """
    first, last = -_EDGE_REACH, math.prod(upsampling_ratios) - 1 + _EDGE_REACH
    for stride in reversed(upsampling_ratios):
        first, last = first - _RESIDUAL_REACH, last + _RESIDUAL_REACH
        padding = math.ceil(stride / 2)
        # With kernel 2 * stride, input i reaches the outputs i * stride - padding + [0, 2 * stride).
        first, last = math.ceil((first + padding - 2 * stride + 1) / stride), (last + padding) // stride
    return max(_EDGE_REACH - first, last + _EDGE_REACH)


def encoder_radius(downsampling_ratios: Sequence[int]) -> int:
    """Latent frames on each side of a frame whose audio it depends on, from the geometry of the Oobleck encoder.

    Args:
        downsampling_ratios: strides of the encoder's blocks, in the order of the forward pass; even, as ACE-Step's
            (2, 4, 4, 6, 10) are.
    """
    first, last = -_BOTTLENECK_REACH, _BOTTLENECK_REACH
    for stride in reversed(downsampling_ratios):
        # With kernel 2 * stride, output i reads the inputs i * stride - padding + [0, 2 * stride).
        first, last = first * stride - stride // 2, last * stride - stride // 2 + 2 * stride - 1
        first, last = first - _RESIDUAL_REACH, last + _RESIDUAL_REACH
    samples = math.prod(downsampling_ratios)
    before, after = _EDGE_REACH - first, last + _EDGE_REACH - (samples - 1)
    return math.ceil(max(before, after) / samples)


class VaeModels(Protocol):
    """Loaded models with a VAE among them."""

    @property
    def vae(self) -> Any:
        """``diffusers.AutoencoderOobleck``."""

    @property
    def device(self) -> torch.device:
        """Device of the VAE."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of its weights."""


def plan_encoding(vae: Any, samples: int, tile_length: int = DEFAULT_TILE_LENGTH) -> TilePlan:
    """Tiles of a recording, with just the overlap that the encoder's receptive field needs."""
    frames = math.ceil(samples / SAMPLES_PER_FRAME)
    return plan_tiles(frames, tile_length, encoder_radius(vae.config.downsampling_ratios))


def encode(models: VaeModels, audio: torch.Tensor, plan: TilePlan) -> torch.Tensor:
    """Audio to latents: the mean of the VAE's posterior, so the same audio gives the same latents.

    Args:
        models: the loaded models.
        audio: float32 on the host, shape ``[2, samples]``, 48 kHz; a last frame is filled up with silence.
        plan: for as many samples.

    Returns:
        On the device, model dtype, shape ``[1, frames, channels]``.
    """
    return torch.cat([encode_tile(models, audio, tile) for tile in plan.tiles], dim=1)


def encode_tile(models: VaeModels, audio: torch.Tensor, tile: Tile) -> torch.Tensor:
    """The encoder over one tile: the mean of the posterior, not a sample from it.

    Args:
        models: the loaded models.
        audio: of the whole recording, float32 on the host, shape ``[2, samples]``; short of the window's end, it is
            filled up with silence.
        tile: which frames to encode, and which to keep.

    Returns:
        Latents of the kept frames on the device, model dtype, shape ``[1, frames, channels]``.
    """
    window_start, window_stop = (frame * SAMPLES_PER_FRAME for frame in tile.window)
    window = audio[:, window_start:window_stop]
    window = torch.nn.functional.pad(window, (0, window_stop - window_start - window.shape[-1]))
    (posterior,) = models.vae.encode(window.unsqueeze(0).to(models.device, models.dtype), return_dict=False)
    start, stop = (frame - tile.window[0] for frame in tile.kept)
    latents: torch.Tensor = posterior.mode()[:, :, start:stop].transpose(1, 2)
    return latents
