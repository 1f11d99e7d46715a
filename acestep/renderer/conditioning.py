"""The conditions of the diffusion transformer: text, lyrics and timbre, beside the context that it starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from acestep.renderer.context import silence_latents
from acestep.renderer.encoders import Encoders
from acestep.renderer.models import RendererModels
from acestep.renderer.prompts import (
    CAPTION_TOKEN_LIMIT,
    LYRICS_TOKEN_LIMIT,
    caption_prompt,
    lyrics_prompt,
    token_ids,
)
from acestep.renderer.render_request import RenderRequest
from acestep.types import SAMPLES_PER_FRAME

TIMBRE_FRAMES: Final = 750
"""Latent frames (30 s) of the reference that the timbre encoder reads; silence when there is no reference."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Conditions:
    """Inputs of the transformer that stay the same over the steps, or until the switch. Compared by identity.

    Attributes:
        encoder_hidden_states: lyrics, timbre and text for the cross-attention, model dtype,
            shape ``[batch, tokens, hidden]``.
        context_latents: source latents beside the mask of the frames to generate, model dtype,
            shape ``[batch, frames, 2 * channels]``.
        switch: conditions that replace these during the diffusion, or ``None``.
        source_latents: of the source as it is, shape ``[1, frames, channels]``, or ``None`` without a source.
    """

    encoder_hidden_states: torch.Tensor
    context_latents: torch.Tensor
    switch: ConditionSwitch | None = None
    source_latents: torch.Tensor | None = None

    def expanded(self, batch_size: int) -> Conditions:
        """The same conditions until the switch for every song of a batch, without copying them."""
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


@dataclass(frozen=True, slots=True)
class ConditionSwitch:
    """Other conditions that replace the first ones during the diffusion.

    Attributes:
        step: first step under them, from 0.
        conditions: for the same number of frames.
    """

    step: int
    conditions: Conditions


def encode_prompt(
    models: RendererModels, request: RenderRequest, instruction: str, encoders: Encoders
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode text and lyrics of a request under one instruction.

    Args:
        models: the loaded models.
        request: caption, metadata, lyrics and length.
        instruction: the task.
        encoders: of the models.

    Returns:
        Text and lyrics, each of shape ``[1, tokens, hidden]``.
    """
    prompt = caption_prompt(request.caption, request.metadata, request.duration, instruction)
    text = encode_text(models, prompt, encoders)
    return text, embed_lyrics(models, lyrics_prompt(request.lyrics, request.metadata.language))


def encode_text(models: RendererModels, text: str, encoders: Encoders) -> torch.Tensor:
    """Last hidden states of the text encoder over a caption prompt, shape ``[1, tokens, hidden]``."""
    return encoders.text(_id_tensor(models, text, CAPTION_TOKEN_LIMIT))


def embed_lyrics(models: RendererModels, text: str) -> torch.Tensor:
    """Token embeddings of a lyrics prompt, shape ``[1, tokens, hidden]``: the lyric encoder supplies the context."""
    embeddings: torch.Tensor = models.text_encoder.get_input_embeddings()(_id_tensor(models, text, LYRICS_TOKEN_LIMIT))
    return embeddings


def encode_conditions(
    models: RendererModels,
    text: torch.Tensor,
    lyrics: torch.Tensor,
    timbre: torch.Tensor | None = None,
    *,
    encoders: Encoders,
) -> torch.Tensor:
    """Fuse text, lyrics and timbre, shape ``[1, tokens, hidden]``.

    Args:
        models: the loaded models.
        text: shape ``[1, tokens, hidden]``.
        lyrics: the same.
        timbre: latents of the reference, shape ``[1, TIMBRE_FRAMES, channels]``; ``None`` is silence.
        encoders: of the models.
    """
    return encoders.conditions(text, lyrics, silence_latents(models, TIMBRE_FRAMES) if timbre is None else timbre)


def timbre_excerpt(reference: torch.Tensor) -> torch.Tensor:
    """Half a minute that represents a recording: ten seconds from the middle of each third.

    Args:
        reference: shape ``[2, samples]``, 48 kHz; repeated while it is shorter than half a minute.

    Returns:
        Shape ``[2, TIMBRE_FRAMES * SAMPLES_PER_FRAME]``.
    """
    needed = TIMBRE_FRAMES * SAMPLES_PER_FRAME
    repeated = reference.repeat(1, max(1, -(-needed // reference.shape[-1])))
    third, excerpt = repeated.shape[-1] // 3, needed // 3
    starts = (number * third + (third - excerpt) // 2 for number in range(3))
    return torch.cat([repeated[:, start : start + excerpt] for start in starts], dim=-1)


def _id_tensor(models: RendererModels, text: str, limit: int) -> torch.Tensor:
    return torch.tensor([token_ids(models.text_tokenizer, text, limit)], device=models.device)
