"""From latents to audio: the VAE's decoder over tiles, by the first fallback that has the memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from typing import Any

import torch

from acestep.errors import stage_errors
from acestep.memory_cap import effective_free_memory
from acestep.offloading import ModelOffloader
from acestep.renderer.decode_fallbacks import DecodeSettings, DecodeStep, decode_bytes_per_frame, decode_fallbacks
from acestep.renderer.models import RendererModels
from acestep.renderer.vae import SongTile, receptive_radius
from acestep.types import SAMPLES_PER_FRAME, Progress, ProgressCallback, VaeDecoding


class VaeDecoder:
    """Decodes songs with one VAE.

    Args:
        models: loaded models; they are only read.
        offloader: where the VAE lives between uses.
        settings: what the user settled.
    """

    def __init__(self, models: RendererModels, offloader: ModelOffloader, settings: DecodeSettings) -> None:
        self.models = models
        self.offloader = offloader
        self.settings = settings

    def on_device(self) -> AbstractContextManager[None]:
        """The VAE on the device while the block runs, unless it is to work on the host anyway."""
        return self.offloader.on_device(**({} if self.settings.on_cpu else {"vae": self.models.vae}))

    def fallbacks(self, frames: int) -> tuple[DecodeStep, ...]:
        """The ways to decode a song, by the memory that is free just now."""
        vae = self.models.vae
        return decode_fallbacks(
            frames,
            receptive_radius(vae.upsampling_ratios),
            device=self.models.device,
            settings=self.settings,
            free_bytes=effective_free_memory(self.models.device),
            bytes_per_frame=decode_bytes_per_frame(vae.config.decoder_channels, self.models.dtype),
        )

    @stage_errors("vae.decode")
    @torch.inference_mode()
    def decode(
        self, latents: torch.Tensor, fallbacks: Sequence[DecodeStep], progress: ProgressCallback | None = None
    ) -> tuple[torch.Tensor, VaeDecoding]:
        """Latents to audio on the host, the first way that has enough memory.

        Args:
            latents: shape ``[songs, frames, channels]``.
            fallbacks: ways to try in order, for ``frames``.
            progress: called after every tile has been handed to the device.

        Returns:
            float32 on the host, shape ``[songs, 2, samples]``, and how it was made.

        Raises:
            OutOfMemory: not even the last way had enough.
        """
        for attempt, step in enumerate(fallbacks, start=1):
            try:
                audio = self.decode_at(latents, step, progress)
            except torch.OutOfMemoryError:
                if attempt == len(fallbacks):
                    raise
            else:
                return audio, VaeDecoding(
                    rung=step.location,
                    tile_length=step.plan.tile_length,
                    overlap=step.plan.overlap,
                    tiles=latents.shape[0] * len(step.plan.tiles),
                    attempts=attempt,
                )
        raise ValueError("one way to decode or more is needed")

    def decode_at(
        self, latents: torch.Tensor, step: DecodeStep, progress: ProgressCallback | None = None
    ) -> torch.Tensor:
        """Latents to audio in one way; the copy to the host is the request's one wait for the device.

        Songs are decoded one after the other, so a tile's memory does not grow with the batch.

        Args:
            latents: shape ``[songs, frames, channels]``.
            step: where and in which tiles.
            progress: called after every tile.

        Returns:
            float32 on the host, shape ``[songs, 2, samples]``.
        """
        if step.location == "cpu" and self.models.device.type != "cpu":
            with self.offloader.on_host("vae", self.models.vae):
                # In float32: processors without bfloat16 arithmetic take many times as long to imitate it.
                return self._decode_tiles(latents.cpu(), step, deepcopy(self.models.vae).float(), progress)
        return self._decode_tiles(latents, step, self.models.vae, progress)

    def _decode_tiles(
        self, latents: torch.Tensor, step: DecodeStep, vae: Any, progress: ProgressCallback | None
    ) -> torch.Tensor:
        tiles = step.plan.of_songs(latents.shape[0])
        audio = torch.empty(
            (latents.shape[0], 2, step.plan.frames * SAMPLES_PER_FRAME),
            device="cpu" if step.location == "gpu+cpu buffer" else latents.device,
            dtype=vae.dtype,
        )
        for tile in tiles:
            start, stop = (frame * SAMPLES_PER_FRAME for frame in tile.kept)
            audio[tile.song, :, start:stop] = self.decode_tile(latents, tile=tile, vae=vae)
            if progress is not None:
                progress(Progress("vae.decode", tile.index + 1, len(tiles)))
        return audio.cpu().float()

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
        decoded: torch.Tensor = vae.decode(window, return_dict=False)[0][0]
        start, stop = ((frame - window_start) * SAMPLES_PER_FRAME for frame in tile.kept)
        return decoded[:, start:stop]
