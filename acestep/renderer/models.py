"""The renderer's models as it receives them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    from acestep.weights.adapters import LoadedAdapter


@dataclass(frozen=True, slots=True)
class RendererModels:
    """Loaded diffusion transformer, its condition encoders and the VAE.

    Attributes:
        name: for example ``acestep-v15-turbo``.
        weights: ``synthetic`` or ``checkpoint``.
        is_turbo: guidance is distilled into the weights, so no classifier-free guidance is run.
        default_shift: timestep shift that the model was trained for.
        transformer: ``diffusers.AceStepTransformer1DModel``.
        condition_encoder: ``AceStepConditionEncoder``; holds ``silence_latent`` and ``null_condition_emb``.
        audio_tokenizer: ``AceStepAudioTokenizer`` (latents to audio codes, and codes to vectors).
        audio_token_detokenizer: ``AceStepAudioTokenDetokenizer`` (vectors to 25 Hz latents).
        vae: ``diffusers.AutoencoderOobleck``.
        text_encoder: ``transformers.Qwen3Model`` (Qwen3-Embedding).
        text_tokenizer: its tokenizer.
        device: where the models live.
        dtype: of their weights.
        adapters: of the transformer.
    """

    name: str
    weights: str
    is_turbo: bool
    default_shift: float
    transformer: Any
    condition_encoder: Any
    audio_tokenizer: Any
    audio_token_detokenizer: Any
    vae: Any
    text_encoder: Any
    text_tokenizer: Tokenizer
    device: torch.device
    dtype: torch.dtype
    adapters: tuple[LoadedAdapter, ...] = ()


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


def trained_shift(name: str, *, is_turbo: bool) -> float:
    """Timestep shift that a released model was trained for; its configuration does not say.

    Args:
        name: of the model; ``acestep-v15-turbo-shift1`` is the one turbo model that was distilled on uniform times.
        is_turbo: whether guidance is distilled into the weights; models that are not were trained on uniform times.
    """
    return 3.0 if is_turbo and "shift1" not in name else 1.0
