"""The renderer's models as it receives them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer


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
