"""From a recording to audio codes: VAE encode, then the audio tokenizer. No diffusion transformer is needed for it."""

from __future__ import annotations

from typing import Final

import torch

from acestep.errors import AudioReadError, stage_errors
from acestep.offloading import ModelOffloader
from acestep.renderer.models import AudioEncoderModels
from acestep.renderer.vae import TilePlan, encode, plan_encoding
from acestep.types import CODES_PER_SECOND, SAMPLE_RATE, Placement

MIN_RECORDING_SECONDS: Final = 1 / CODES_PER_SECOND
"""Shortest recording that is encoded: the length of one audio code."""


class AudioEncoder:
    """Encodes recordings with one set of models.

    ``encode`` and ``tokenize`` are looked up when they are called, so an observer can wrap them.

    Args:
        models: loaded models; they are only read.
        offloader: decides where they are between uses; that of the renderer, if the models are a renderer's. Without
            one they stay on their device.
    """

    def __init__(self, models: AudioEncoderModels, offloader: ModelOffloader | None = None) -> None:
        self.models = models
        self.offloader = offloader or ModelOffloader(models.device, Placement())

    def codes(self, recording: torch.Tensor) -> tuple[int, ...]:
        """The audio codes of a recording.

        Args:
            recording: float32 on the host, shape ``[2, samples]``, 48 kHz (``acestep.audio.load_audio``).

        Returns:
            Five per second, each 0 ... 63,999; a last code is filled up with silence.

        Raises:
            AudioReadError: it is shorter than one code.
            OutOfMemory: a stage did not fit; ``stage`` says which.
        """
        require_encodable(recording.shape[-1] / SAMPLE_RATE)
        with self.offloader.on_device(vae=self.models.vae):
            latents = self.encode(recording, plan_encoding(self.models.vae, recording.shape[-1]))
        with self.offloader.on_device(audio_tokenizer=self.models.audio_tokenizer):
            codes = self.tokenize(latents)
        self.offloader.empty_cache()
        return codes

    @stage_errors("vae.encode")
    @torch.inference_mode()
    def encode(self, audio: torch.Tensor, plan: TilePlan) -> torch.Tensor:
        """Audio to latents (``acestep.renderer.vae.encode``), shape ``[1, frames, channels]``."""
        return encode(self.models, audio, plan)

    @stage_errors("audio.tokenize")
    @torch.inference_mode()
    def tokenize(self, latents: torch.Tensor) -> tuple[int, ...]:
        """Latents to audio codes, read back to the host.

        Args:
            latents: on the device, model dtype, shape ``[1, frames, channels]``.
        """
        _, indices = self.models.audio_tokenizer.tokenize(latents, self.models.silence_latent)
        return tuple(indices.flatten().tolist())


def require_encodable(seconds: float) -> None:
    """Reject a recording that is shorter than one audio code.

    Raises:
        AudioReadError: it is shorter than ``MIN_RECORDING_SECONDS``.
    """
    if seconds < MIN_RECORDING_SECONDS:
        raise AudioReadError(
            f"a recording of {seconds:g} s is too short: one audio code is {MIN_RECORDING_SECONDS:g} s"
        )
