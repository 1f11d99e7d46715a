"""Modules without memory: built on the meta device, to be given their weights by whoever has them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Final

import torch
from diffusers import AceStepTransformer1DModel, AutoencoderOobleck
from diffusers.pipelines.ace_step import AceStepAudioTokenDetokenizer, AceStepAudioTokenizer, AceStepConditionEncoder
from transformers import Qwen3Config, Qwen3Model

RENDERER_MODULES: Final[Mapping[str, Any]] = {
    "transformer": AceStepTransformer1DModel,
    "condition_encoder": AceStepConditionEncoder,
    "audio_tokenizer": AceStepAudioTokenizer,
    "audio_token_detokenizer": AceStepAudioTokenDetokenizer,
    "vae": AutoencoderOobleck,
}
"""diffusers' classes by their name in ``RendererModels``, which is also their folder in a diffusers repository."""
AUDIO_ENCODER_MODULES: Final = ("audio_tokenizer", "vae")
"""Those of them that turn audio into codes."""


def empty_module(role: str, config: Mapping[str, Any]) -> Any:
    """A module of diffusers on the meta device.

    Args:
        role: a key of ``RENDERER_MODULES``.
        config: arguments of its class; those that it does not know are left out.
    """
    with warnings.catch_warnings(), torch.device("meta"):
        # diffusers' VAE uses a form of weight norm that torch is about to drop; no caller can change that.
        warnings.filterwarnings("ignore", message=".*weight_norm.*", category=FutureWarning)
        return RENDERER_MODULES[role].from_config(dict(config))


def empty_qwen3(config: Qwen3Config) -> Qwen3Model:
    """A Qwen3 model without a head, on the meta device."""
    with torch.device("meta"):
        return Qwen3Model(config)


def restore_rotary_frequencies(model: Qwen3Model, device: torch.device) -> None:
    """Compute again what the constructor computed on the meta device; in float32, whatever the weights are in."""
    model.rotary_emb = type(model.rotary_emb)(config=model.config).to(device)


def restore_quantizer(audio_tokenizer: Any) -> None:
    """Compute again what the quantizer's constructor computed on the meta device: levels, basis and scales."""
    quantizer = audio_tokenizer.quantizer
    with torch.random.fork_rng(devices=[]):
        computed = type(quantizer)(dim=1, levels=quantizer.levels, num_quantizers=quantizer.num_quantizers)
    for name, buffer in computed.named_buffers():
        setattr(quantizer, name, buffer.to(quantizer.project_in.weight.device))
