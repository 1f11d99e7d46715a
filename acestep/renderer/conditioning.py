"""What the diffusion transformer is told: text, lyrics, timbre and source latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from acestep.errors import InvalidRequest
from acestep.renderer.models import RendererModels
from acestep.renderer.prompts import CAPTION_TOKEN_LIMIT, LYRICS_TOKEN_LIMIT, token_ids

TIMBRE_FRAMES: Final = 750
"""Latent frames (30 s) of the reference that the timbre encoder hears; silence when there is no reference."""
MIN_FRAMES: Final = 128
"""Shortest sequence that the transformer was trained on (5.12 s); shorter songs are padded with silence, then cut."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """Inputs of the transformer that stay the same over the steps.

    Attributes:
        encoder_hidden_states: lyrics, timbre and text for the cross-attention, model dtype,
            shape ``[batch, tokens, hidden]``.
        context_latents: source latents beside the mask of the frames to generate, model dtype,
            shape ``[batch, frames, 2 * channels]``.
    """

    encoder_hidden_states: torch.Tensor
    context_latents: torch.Tensor

    def expanded(self, batch_size: int) -> Conditions:
        """The same conditions for every song of a batch, without copying them."""
        return Conditions(
            self.encoder_hidden_states.expand(batch_size, -1, -1), self.context_latents.expand(batch_size, -1, -1)
        )

    def with_unconditional(self, null_condition: torch.Tensor) -> Conditions:
        """The batch followed by itself without text, lyrics and timbre, for guidance in one forward pass."""
        unconditional = null_condition.expand_as(self.encoder_hidden_states)
        return Conditions(
            torch.cat([self.encoder_hidden_states, unconditional]),
            torch.cat([self.context_latents, self.context_latents]),
        )


def encode_text(models: RendererModels, text: str) -> torch.Tensor:
    """Last hidden states of the text encoder over a caption prompt, shape ``[1, tokens, hidden]``."""
    ids = _id_tensor(models, text, CAPTION_TOKEN_LIMIT)
    hidden_states: torch.Tensor = models.text_encoder(input_ids=ids, use_cache=False).last_hidden_state
    return hidden_states


def embed_lyrics(models: RendererModels, text: str) -> torch.Tensor:
    """Token embeddings of a lyrics prompt, shape ``[1, tokens, hidden]``: the lyric encoder supplies the context."""
    embeddings: torch.Tensor = models.text_encoder.get_input_embeddings()(_id_tensor(models, text, LYRICS_TOKEN_LIMIT))
    return embeddings


def encode_conditions(models: RendererModels, text: torch.Tensor, lyrics: torch.Tensor) -> torch.Tensor:
    """Fuse text and lyrics with the timbre of silence (no reference audio), shape ``[1, tokens, hidden]``."""
    encoder_hidden_states: torch.Tensor
    encoder_hidden_states, _ = models.condition_encoder(
        text_hidden_states=text,
        text_attention_mask=torch.ones(text.shape[:2], dtype=torch.bool, device=models.device),
        lyric_hidden_states=lyrics,
        lyric_attention_mask=torch.ones(lyrics.shape[:2], dtype=torch.bool, device=models.device),
        refer_audio_acoustic_hidden_states_packed=silence_latents(models, TIMBRE_FRAMES),
        refer_audio_order_mask=torch.zeros(1, dtype=torch.long, device=models.device),
    )
    return encoder_hidden_states


def silence_latents(models: RendererModels, frames: int) -> torch.Tensor:
    """What the VAE encodes silence to, shape ``[1, frames, channels]``.

    Raises:
        InvalidRequest: more frames than the model's recording of silence has (600 s).
    """
    silence: torch.Tensor = models.condition_encoder.silence_latent
    if frames > silence.shape[1]:
        raise InvalidRequest(f"{frames} latent frames asked for, but the model renders {silence.shape[1]} at most")
    return silence[:, :frames]


def code_latents(models: RendererModels, codes: Sequence[Sequence[int]]) -> torch.Tensor:
    """Latents that audio codes stand for, shape ``[songs, 5 * codes, channels]``.

    Args:
        models: the loaded models.
        codes: one sequence per song, equally long, within 0 ... 63,999.
    """
    indices = torch.tensor([list(song) for song in codes], device=models.device).unsqueeze(-1)
    quantized = models.audio_tokenizer.quantizer.get_output_from_indices(indices)
    latents: torch.Tensor = models.audio_token_detokenizer(quantized)
    return latents


def context_latents(models: RendererModels, source: torch.Tensor) -> torch.Tensor:
    """Source latents, padded with silence to ``MIN_FRAMES``, beside a mask that says "generate every frame".

    Args:
        models: the loaded models.
        source: shape ``[batch, frames, channels]``.

    Returns:
        Shape ``[batch, max(frames, MIN_FRAMES), 2 * channels]``.
    """
    missing = max(0, MIN_FRAMES - source.shape[1])
    padding = silence_latents(models, missing).expand(source.shape[0], -1, -1)
    padded = torch.cat([source, padding], dim=1)
    return torch.cat([padded, torch.ones_like(padded)], dim=-1)


def _id_tensor(models: RendererModels, text: str, limit: int) -> torch.Tensor:
    return torch.tensor([token_ids(models.text_tokenizer, text, limit)], device=models.device)
