"""From a recording to audio codes: VAE encode, then the audio tokenizer. No diffusion transformer is needed for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Self

import torch

from acestep.errors import AudioReadError, stage_errors
from acestep.placement import Placement
from acestep.renderer.models import RendererModels
from acestep.renderer.vae import TilePlan, encode, plan_encoding
from acestep.residence import Residence
from acestep.types import CODES_PER_SECOND, SAMPLE_RATE

MIN_RECORDING_SECONDS: Final = 1 / CODES_PER_SECOND
"""Shortest recording that is encoded: what one audio code stands for."""


@dataclass(frozen=True, slots=True)
class AudioEncoderModels:
    """The part of a renderer's models that turns audio into codes.

    Attributes:
        name: of the checkpoint that they come from, for example ``acestep-v15-turbo``.
        weights: ``synthetic`` or ``checkpoint``.
        vae: ``diffusers.AutoencoderOobleck``.
        audio_tokenizer: ``AceStepAudioTokenizer``.
        silence_latent: what the VAE encodes silence to, shape ``[1, frames, channels]``; fills up a last code.
        device: where the models run.
        dtype: of their weights.
    """

    name: str
    weights: str
    vae: Any
    audio_tokenizer: Any
    silence_latent: torch.Tensor
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, models: RendererModels) -> Self:
        """Those of a renderer that is loaded already; nothing is copied."""
        return cls(
            name=models.name,
            weights=models.weights,
            vae=models.vae,
            audio_tokenizer=models.audio_tokenizer,
            silence_latent=models.condition_encoder.silence_latent,
            device=models.device,
            dtype=models.dtype,
        )


class AudioEncoder:
    """Encodes recordings with one set of models.

    ``encode`` and ``tokenize`` are called through ``self``, so an observer can wrap them from outside.

    Args:
        models: loaded models; they are only read.
        residence: where they live between uses, a renderer's own where they are a renderer's; on their device when not
            given.
    """

    def __init__(self, models: AudioEncoderModels, residence: Residence | None = None) -> None:
        self.models = models
        self.residence = residence or Residence(models.device, Placement())

    def codes(self, recording: torch.Tensor) -> tuple[int, ...]:
        """The audio codes that a recording is heard as.

        Args:
            recording: float32 on the host, shape ``[2, samples]``, 48 kHz (``acestep.audio.load_audio``).

        Returns:
            Five per second, each 0 ... 63,999; a last code is filled up with silence.

        Raises:
            AudioReadError: it is shorter than one code.
            OutOfMemory: a stage did not fit; ``stage`` says which.
        """
        require_encodable(recording.shape[-1] / SAMPLE_RATE)
        with self.residence.using(vae=self.models.vae):
            latents = self.encode(recording, plan_encoding(self.models.vae, recording.shape[-1]))
        with self.residence.using(audio_tokenizer=self.models.audio_tokenizer):
            codes = self.tokenize(latents)
        self.residence.give_back()
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
    """Refuse a recording in which there is not even one audio code.

    Raises:
        AudioReadError: it is shorter than ``MIN_RECORDING_SECONDS``.
    """
    if seconds < MIN_RECORDING_SECONDS:
        raise AudioReadError(
            f"a recording of {seconds:g} s is too short to be heard: one audio code is {MIN_RECORDING_SECONDS:g} s"
        )
