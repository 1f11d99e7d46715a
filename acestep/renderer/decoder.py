"""From latents to audio: the VAE's decoder over tiles, by the first fallback that has the memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final

import torch

from acestep.errors import stage_errors
from acestep.memory_cap import effective_free_memory
from acestep.offloading import ModelOffloader
from acestep.renderer.decode_fallbacks import DecodeSettings, DecodeStep, decode_bytes_per_frame, decode_fallbacks
from acestep.renderer.fused_decoder import FusedDecoder, can_fuse, lay_out
from acestep.renderer.models import RendererModels
from acestep.renderer.vae import SongTile, receptive_radius
from acestep.types import SAMPLES_PER_FRAME, Progress, ProgressCallback, VaeDecoding

logger = logging.getLogger(__name__)

_TOLERANCE: Final = 0.1
"""Relative difference that rounding to bfloat16 explains, over all layers."""
_TRIED_FRAMES: Final = 4


@dataclass(frozen=True, slots=True)
class DecodedSongs:
    """Songs on the host.

    Attributes:
        audio: float32, shape ``[songs, 2, samples]``, at their level.
        extremes: lowest and highest sample of each song before its level was set, float32, shape ``[songs, 2]``; NaN
            or infinity where a sample is.
        decoding: how they were decoded.
    """

    audio: torch.Tensor
    extremes: torch.Tensor
    decoding: VaeDecoding


SetLevel = Callable[[torch.Tensor], torch.Tensor]
"""Brings a decoded song to its level, in place or not: float32, shape ``[2, samples]``, where the VAE is."""


class VaeDecoder:
    """Decodes songs with one VAE.

    Args:
        models: loaded models; they are only read.
        offloader: decides where the VAE is between uses.
        settings: the user's settings.
        fuse: on CUDA, decode with the engine's kernels if they run and agree with the model.
    """

    def __init__(
        self, models: RendererModels, offloader: ModelOffloader, settings: DecodeSettings, *, fuse: bool = True
    ) -> None:
        self.models = models
        self.offloader = offloader
        self.settings = settings
        self._fuse: bool | None = None if fuse else False

    @property
    def fuses(self) -> bool:
        """Whether the engine's kernels decode on the device; they are checked when the VAE is first there."""
        vae = self.models.vae
        if self._fuse is None and vae.device.type == "cuda":
            self._fuse = can_fuse(vae) and decoder_agrees(vae)
        return bool(self._fuse)

    def on_device(self) -> AbstractContextManager[None]:
        """The VAE on the device while the block runs, unless it decodes on the host anyway."""
        return self.offloader.on_device(**({} if self.settings.on_cpu else {"vae": self.models.vae}))

    def fallbacks(self, frames: int) -> tuple[DecodeStep, ...]:
        """The ways to decode a song, by the memory that is free now."""
        vae = self.models.vae
        return decode_fallbacks(
            frames,
            receptive_radius(vae.upsampling_ratios),
            device=self.models.device,
            settings=self.settings,
            free_bytes=effective_free_memory(self.models.device),
            bytes_per_frame=decode_bytes_per_frame(vae.config.decoder_channels, self.models.dtype, fused=self.fuses),
        )

    @stage_errors("vae.decode")
    @torch.inference_mode()
    def decode(
        self,
        latents: torch.Tensor,
        fallbacks: Sequence[DecodeStep],
        progress: ProgressCallback | None = None,
        set_level: SetLevel = torch.Tensor.float,
    ) -> DecodedSongs:
        """Latents to audio on the host, by the first way that has enough memory.

        Args:
            latents: shape ``[songs, frames, channels]``.
            fallbacks: ways to try in order, for ``frames``.
            progress: called after the work of every tile has been submitted to the device.
            set_level: applied to each song before it is copied, where the device passes over the samples in a fraction
                of the host's time.

        Raises:
            OutOfMemory: not even the last way had enough.
        """
        for attempt, step in enumerate(fallbacks, start=1):
            try:
                audio, extremes = self.decode_at(latents, step, progress, set_level)
            except torch.OutOfMemoryError:
                if attempt == len(fallbacks):
                    raise
            else:
                decoding = VaeDecoding(
                    rung=step.location,
                    tile_length=step.plan.tile_length,
                    overlap=step.plan.overlap,
                    tiles=latents.shape[0] * len(step.plan.tiles),
                    attempts=attempt,
                )
                return DecodedSongs(audio, extremes, decoding)
        raise ValueError("one way to decode or more is needed")

    def decode_at(
        self,
        latents: torch.Tensor,
        step: DecodeStep,
        progress: ProgressCallback | None = None,
        set_level: SetLevel = torch.Tensor.float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents to audio by one way; the copy to the host is the request's one wait for the device.

        Songs are decoded one after the other, so a tile's memory does not grow with the batch.

        Args:
            latents: shape ``[songs, frames, channels]``.
            step: where and in which tiles.
            progress: called after every tile.
            set_level: see ``decode``.

        Returns:
            Audio and extremes (see ``DecodedSongs``).
        """
        if step.location == "cpu" and self.models.device.type != "cpu":
            with self.offloader.on_host("vae", self.models.vae):
                # In float32: processors without bfloat16 arithmetic emulate it, which takes many times as long.
                vae = deepcopy(self.models.vae).float()
                return _on_host(self._decode_tiles(latents.cpu(), step, vae, progress), set_level)
        return _on_host(self._decode_tiles(latents, step, self.models.vae, progress), set_level)

    def _decode_tiles(
        self, latents: torch.Tensor, step: DecodeStep, vae: Any, progress: ProgressCallback | None
    ) -> torch.Tensor:
        tiles = step.plan.of_songs(latents.shape[0])
        shape = (latents.shape[0], 2, step.plan.frames * SAMPLES_PER_FRAME)
        leaves = latents.device.type == "cuda" and step.location == "gpu+cpu buffer"
        audio = torch.empty(shape, device="cpu" if leaves else latents.device, dtype=vae.dtype)
        for tile in tiles:
            start, stop = (frame * SAMPLES_PER_FRAME for frame in tile.kept)
            audio[tile.song, :, start:stop] = self.decode_tile(latents, tile=tile, vae=vae)
            if progress is not None:
                progress(Progress("vae.decode", tile.index + 1, len(tiles)))
        return audio

    def decode_tile(self, latents: torch.Tensor, *, tile: SongTile, vae: Any) -> torch.Tensor:
        """The decoder over one tile.

        Args:
            latents: of all songs, shape ``[songs, frames, channels]``.
            tile: which frames of which song to decode, and which to keep.
            vae: the VAE, on the device of ``latents``.

        Returns:
            Audio of the kept frames where the VAE is, in its dtype, shape ``[2, samples]``.
        """
        window_start, window_stop = tile.window
        window = latents[tile.song, window_start:window_stop].to(vae.dtype).T.unsqueeze(0)
        # The kernels read only the weights of the VAE on the device, not of one on the host.
        if vae is self.models.vae and window.is_cuda and self.fuses:
            decoded = FusedDecoder(vae.decoder)(window)[0]
        else:
            decoded = vae.decode(window, return_dict=False)[0][0]
        start, stop = ((frame - window_start) * SAMPLES_PER_FRAME for frame in tile.kept)
        return decoded[:, start:stop]


_PINNED_LIMIT: Final = 2**30
"""Bytes of audio that are copied to the host through memory that cannot be swapped, which is ten times as fast."""


def _on_host(audio: torch.Tensor, set_level: SetLevel) -> tuple[torch.Tensor, torch.Tensor]:
    """Songs at their level and their extremes, float32 on the host; the request's one wait for the device."""
    pins = audio.is_cuda and audio.numel() * torch.float32.itemsize <= _PINNED_LIMIT
    whole, extremes = None, []
    # One at a time: the memory for the copy in float32 does not grow with the batch.
    for index, song in enumerate(audio):
        samples = song.float()
        extremes.append(torch.stack(torch.aminmax(samples)))
        levelled = set_level(samples)
        if whole is None:
            # A tensor of inference mode could not be changed in place by whoever gets the song.
            with torch.inference_mode(False):
                whole = torch.empty((len(audio), *levelled.shape), pin_memory=pins)
        whole[index].copy_(levelled, non_blocking=pins)
    if whole is None:
        raise ValueError("one song or more is needed")
    # After the songs in the device's order, so they have arrived as well.
    return whole, torch.stack(extremes).cpu()


@torch.inference_mode()
def decoder_agrees(vae: Any) -> bool:
    """Store the decoder's weights in the kernels' layout, and keep it if the kernels agree with the model's code.

    If they do not agree on this GPU, driver and Triton version, a warning is logged.
    """
    shape = (1, vae.config.decoder_input_channels, _TRIED_FRAMES)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(vae.device, vae.dtype)
    try:
        expected = vae.decode(latents, return_dict=False)[0].float()
        lay_out(vae.decoder)
        difference = float((FusedDecoder(vae.decoder)(latents).float() - expected).norm() / expected.norm())
    except torch.OutOfMemoryError:
        lay_out(vae.decoder, by_tap=False)
        raise
    # Whatever else a compiler or driver raises: the model's own code still works.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    else:
        if difference < _TOLERANCE:
            return True
        reason = f"their audio differs by {difference:.1%}"
    lay_out(vae.decoder, by_tap=False)
    logger.warning("the VAE decodes without its own kernels, several times slower: %s", reason)
    return False
