"""The context of the diffusion: silence, audio codes or a source, and a mask of the frames to generate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from acestep.errors import InvalidRequest
from acestep.renderer.models import RendererModels
from acestep.renderer.render_request import RenderRequest

MIN_FRAMES: Final = 128
"""Shortest sequence that the transformer was trained on (5.12 s); shorter songs are padded with silence, then cut."""


def task_context(models: RendererModels, request: RenderRequest, source: torch.Tensor | None) -> torch.Tensor:
    """Context latents of a task: from silence, audio codes or a source.

    Args:
        models: the loaded models.
        request: the task, its codes and its window.
        source: latents of the request's source, shape ``[1, frames, channels]``.

    Returns:
        Context latents (``context_latents``) of one song for all, or of each song if there are codes.
    """
    if request.has_codes:
        return context_latents(models, code_latents(models, request.codes))
    if request.source is None or source is None:
        return context_latents(models, silence_latents(models, request.frames))
    start, stop = request.source.frame_window
    match request.task:
        case "cover":
            return context_latents(models, cover_latents(models, source))
        case "repaint":
            silence = silence_latents(models, source.shape[1])
            blanked = torch.cat([source[:, :start], silence[:, start:stop], source[:, stop:]], dim=1)
            return context_latents(models, blanked, (start, stop))
        case "lego":
            # The new track should fit the music in the window, so the model also receives that part of the source.
            return context_latents(models, source, (start, stop))
        case _:
            return context_latents(models, source)


def context_latents(
    models: RendererModels, source: torch.Tensor, window: tuple[int, int] | None = None
) -> torch.Tensor:
    """Source latents, padded with silence to ``MIN_FRAMES``, beside a mask of the frames to generate.

    Args:
        models: the loaded models.
        source: shape ``[batch, frames, channels]``.
        window: ``(start, stop)`` of the frames to generate; ``None`` is every frame.

    Returns:
        Shape ``[batch, max(frames, MIN_FRAMES), 2 * channels]``.
    """
    missing = max(0, MIN_FRAMES - source.shape[1])
    padding = silence_latents(models, missing).expand(source.shape[0], -1, -1)
    padded = torch.cat([source, padding], dim=1)
    if window is None:
        return torch.cat([padded, torch.ones_like(padded)], dim=-1)
    mask = torch.zeros_like(padded)
    mask[:, slice(*window)] = 1.0
    return torch.cat([padded, mask], dim=-1)


def padded_source(models: RendererModels, source: torch.Tensor | None, frames: int) -> torch.Tensor | None:
    """Source latents, padded with silence to the length of the context; ``None`` without a source."""
    if source is None or source.shape[1] >= frames:
        return source
    return torch.cat([source, silence_latents(models, frames - source.shape[1])], dim=1)


def cover_latents(models: RendererModels, source: torch.Tensor) -> torch.Tensor:
    """What is left of source latents when they are encoded as audio codes: the structure, not the sound.

    Args:
        models: the loaded models.
        source: shape ``[1, frames, channels]``; a last code is filled up with silence.

    Returns:
        The same shape.
    """
    quantized, _ = models.audio_tokenizer.tokenize(source, models.condition_encoder.silence_latent)
    latents: torch.Tensor = models.audio_token_detokenizer(quantized)
    return latents[:, : source.shape[1]]


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


def silence_latents(models: RendererModels, frames: int) -> torch.Tensor:
    """What the VAE encodes silence to, shape ``[1, frames, channels]``.

    Raises:
        InvalidRequest: more frames than the model's recording of silence has (600 s).
    """
    silence: torch.Tensor = models.condition_encoder.silence_latent
    if frames > silence.shape[1]:
        raise InvalidRequest(f"{frames} latent frames were requested, but the model renders at most {silence.shape[1]}")
    return silence[:, :frames]
