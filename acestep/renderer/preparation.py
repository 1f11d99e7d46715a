"""From loaded weights to models that are ready to run: folded, quantised, compiled, in their place."""

from __future__ import annotations

import warnings
from typing import Any, Final

from torch import nn

from acestep.renderer.audio_encoder import AudioEncoderModels
from acestep.renderer.compilation import compile_models
from acestep.renderer.models import RendererModels
from acestep.renderer.quantization import quantize
from acestep.residence import Residence

MODEL_NAMES: Final = (
    "transformer",
    "condition_encoder",
    "audio_tokenizer",
    "audio_token_detokenizer",
    "vae",
    "text_encoder",
)
"""Modules of ``RendererModels``, by field."""


def prepare(models: RendererModels, residence: Residence) -> None:
    """Bring models into the form and to the place that they run from; all of it in place.

    Args:
        models: freshly loaded, on the host or on the device.
        residence: where they will live.
    """
    placement = residence.placement
    fold_weight_norm(models.vae)
    if placement.quantization is not None:
        quantize(models.transformer, placement.quantization, models.device)
    if placement.compile:
        compile_models(models)
    for name in MODEL_NAMES:
        residence.settle(name, getattr(models, name))


def prepare_audio_encoder(models: AudioEncoderModels, residence: Residence) -> None:
    """The same for what hears a recording: it is small, so it is neither quantised nor compiled."""
    fold_weight_norm(models.vae)
    for name in ("vae", "audio_tokenizer"):
        residence.settle(name, getattr(models, name))


def fold_weight_norm(vae: Any) -> None:
    """Compute the VAE's normalised kernels once: every tile would compute them again, and both forms take memory."""
    for module in vae.modules():
        if "weight_g" in getattr(module, "_parameters", {}):
            with warnings.catch_warnings():
                # The form of weight norm that the checkpoints have, which torch is about to drop.
                warnings.simplefilter("ignore", FutureWarning)
                nn.utils.remove_weight_norm(module)
            module.requires_grad_(False)
