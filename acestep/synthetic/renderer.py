"""Renderer models with seeded random weights: real architecture, real cost, noise for music."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from transformers import Qwen3Config

from acestep.planner.vocabulary import QWEN3_LAYOUT, TokenLayout
from acestep.renderer.models import AudioEncoderModels, RendererModels, trained_shift
from acestep.synthetic.language_model import TINY_LAYOUT
from acestep.synthetic.random_weights import build_qwen3, draw_normal, materialise, tensor_seed
from acestep.synthetic.tokenizer import build_tokenizer
from acestep.weights.meta_modules import AUDIO_ENCODER_MODULES, RENDERER_MODULES, empty_module, restore_quantizer


@dataclass(frozen=True, slots=True)
class RendererConfig:
    """Sizes of a renderer's models, as arguments of the classes that they are made of.

    Attributes:
        is_turbo: whether guidance is distilled into the weights.
        transformer: of ``AceStepTransformer1DModel``, beyond what it shares with the encoders.
        encoder: shared by the condition encoder, the audio tokenizer and the detokenizer.
        condition_layers: layers of the lyric and of the timbre encoder.
        text_encoder: of ``Qwen3Config``, beyond the vocabulary.
        text_layout: tokens of the text encoder.
        vae: of ``AutoencoderOobleck``, beyond the strides, which are the same everywhere.
        latent_channels: width of the latents.
    """

    is_turbo: bool
    transformer: Mapping[str, Any]
    encoder: Mapping[str, Any]
    condition_layers: tuple[int, int]
    text_encoder: Mapping[str, Any]
    text_layout: TokenLayout
    vae: Mapping[str, Any]
    latent_channels: int


_RESIDUAL_GAIN: Final = 0.1
_OUTPUT_GAIN: Final = 0.2
_DOWNSAMPLING_RATIOS: Final = (2, 4, 4, 6, 10)
_SILENCE_FRAMES: Final = 15_000
_TRUE_SIZE: Final[Mapping[str, Any]] = {
    "encoder": {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "sliding_window": 128,
    },
    "condition_layers": (8, 4),
    "text_encoder": {  # Qwen3-Embedding-0.6B
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "text_layout": QWEN3_LAYOUT,
    "vae": {"encoder_hidden_size": 128, "decoder_channels": 128, "channel_multiples": [1, 2, 4, 8, 16]},
    "latent_channels": 64,
}
_TINY_SIZE: Final[Mapping[str, Any]] = {
    "transformer": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "encoder": {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 16,
    },
    "condition_layers": (2, 2),
    "text_encoder": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    },
    "text_layout": TINY_LAYOUT,
    "vae": {"encoder_hidden_size": 8, "decoder_channels": 2, "channel_multiples": [1, 1, 1, 1, 1]},
    "latent_channels": 4,
}
_STANDARD_TRANSFORMER: Final = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
}
_XL_TRANSFORMER: Final = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


def _standard(*, is_turbo: bool) -> RendererConfig:
    return RendererConfig(is_turbo, transformer=_STANDARD_TRANSFORMER, **_TRUE_SIZE)


def _xl(*, is_turbo: bool) -> RendererConfig:
    return RendererConfig(is_turbo, transformer=_XL_TRANSFORMER, **_TRUE_SIZE)


RENDERER_CONFIGS: Final[Mapping[str, RendererConfig]] = {
    "acestep-v15-tiny": RendererConfig(is_turbo=True, **_TINY_SIZE),
    "acestep-v15-tiny-base": RendererConfig(is_turbo=False, **_TINY_SIZE),
    "acestep-v15-turbo": _standard(is_turbo=True),
    "acestep-v15-turbo-shift1": _standard(is_turbo=True),
    "acestep-v15-turbo-shift3": _standard(is_turbo=True),
    "acestep-v15-turbo-continuous": _standard(is_turbo=True),
    "acestep-v15-base": _standard(is_turbo=False),
    "acestep-v15-sft": _standard(is_turbo=False),
    "acestep-v15-xl-turbo": _xl(is_turbo=True),
    "acestep-v15-xl-base": _xl(is_turbo=False),
    "acestep-v15-xl-sft": _xl(is_turbo=False),
}
"""Every renderer that can be built with random weights, by name."""


def build_renderer_models(
    name: str, *, device: torch.device, dtype: torch.dtype, seed: int = 0, storage: torch.device | None = None
) -> RendererModels:
    """Build a renderer's models with random weights.

    Args:
        name: a key of ``RENDERER_CONFIGS``.
        device: where the models run, and where the weights are drawn.
        dtype: of the weights.
        seed: the models' seed; equal seeds give equal weights on the CPU.
        storage: where the weights are kept; ``device`` when not given.

    Raises:
        KeyError: the name is not in the table.
    """
    config = RENDERER_CONFIGS[name]
    modules = _materialised(diffusers_modules(config), device=device, dtype=dtype, seed=seed, storage=storage)
    encoder = modules["condition_encoder"]
    for buffer in ("silence_latent", "null_condition_emb"):
        _fill(getattr(encoder, buffer), buffer, seed, device)
    return RendererModels(
        name=name,
        weights="synthetic",
        is_turbo=config.is_turbo,
        default_shift=trained_shift(name, is_turbo=config.is_turbo),
        **modules,
        text_encoder=build_qwen3(
            text_encoder_config(config),
            seed=tensor_seed(seed, "text_encoder"),
            device=device,
            dtype=dtype,
            storage=storage,
        ),
        text_tokenizer=build_tokenizer(config.text_layout),
        device=device,
        dtype=dtype,
    )


def build_audio_encoder_models(
    name: str, *, device: torch.device, dtype: torch.dtype, seed: int = 0, storage: torch.device | None = None
) -> AudioEncoderModels:
    """Build the VAE and the audio tokenizer of a renderer, with the weights that they have in it.

    Args:
        name: a key of ``RENDERER_CONFIGS``.
        device: where the models run, and where the weights are drawn.
        dtype: of the weights.
        seed: the models' seed.
        storage: where the weights are kept; ``device`` when not given.

    Raises:
        KeyError: the name is not in the table.
    """
    config = RENDERER_CONFIGS[name]
    modules = _materialised(
        diffusers_modules(config, AUDIO_ENCODER_MODULES), device=device, dtype=dtype, seed=seed, storage=storage
    )
    silence = torch.empty(1, _SILENCE_FRAMES, config.latent_channels, device=device, dtype=dtype)
    _fill(silence, "silence_latent", seed, device)
    return AudioEncoderModels(
        name=name, weights="synthetic", **modules, silence_latent=silence, device=device, dtype=dtype
    )


def diffusers_modules(config: RendererConfig, roles: Collection[str] = RENDERER_MODULES) -> dict[str, Any]:
    """The modules that diffusers provides, by their name in ``RendererModels``, on the meta device (no memory)."""
    encoder, channels = config.encoder, config.latent_channels
    lyric_layers, timbre_layers = config.condition_layers
    shared_attention = {"head_dim": encoder["head_dim"], "sliding_window": encoder["sliding_window"]}
    arguments: dict[str, dict[str, Any]] = {
        "transformer": {
            **config.transformer,
            **shared_attention,
            "in_channels": 3 * channels,
            "audio_acoustic_hidden_dim": channels,
            "encoder_hidden_size": encoder["hidden_size"],
            "is_turbo": config.is_turbo,
        },
        "condition_encoder": {
            **encoder,
            "text_hidden_dim": config.text_encoder["hidden_size"],
            "timbre_hidden_dim": channels,
            "num_lyric_encoder_hidden_layers": lyric_layers,
            "num_timbre_encoder_hidden_layers": timbre_layers,
        },
        "audio_tokenizer": {**encoder, "audio_acoustic_hidden_dim": channels, "fsq_dim": encoder["hidden_size"]},
        "audio_token_detokenizer": {**encoder, "audio_acoustic_hidden_dim": channels},
        "vae": {
            **config.vae,
            "downsampling_ratios": list(_DOWNSAMPLING_RATIOS),
            "decoder_input_channels": channels,
            "sampling_rate": 48_000,
        },
    }
    return {role: empty_module(role, values) for role, values in arguments.items() if role in roles}


def text_encoder_config(config: RendererConfig) -> Qwen3Config:
    """Architecture of the text encoder (Qwen3-Embedding)."""
    return Qwen3Config(
        **config.text_encoder,
        vocab_size=config.text_layout.text_size,
        max_position_embeddings=32_768,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    )


def _materialised(
    modules: dict[str, Any],
    *,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
    storage: torch.device | None = None,
) -> dict[str, Any]:
    """Give modules on the meta device their memory and their weights, which depend only on role and seed."""
    for role, module in modules.items():
        materialise(module, seed=tensor_seed(seed, role), device=device, dtype=dtype, storage=storage)
        _balance_transposed_convolutions(module)
    _set_vae_gains(modules["vae"])
    restore_quantizer(modules["audio_tokenizer"])
    return modules


@torch.no_grad()
def _balance_transposed_convolutions(module: nn.Module) -> None:
    """Keep the signal's scale: an output of a transposed convolution sums over input channels and kernel / stride."""
    for layer in module.modules():
        if isinstance(layer, nn.ConvTranspose1d):
            gain = (layer.out_channels * layer.stride[0] / layer.in_channels) ** 0.5
            weight: torch.Tensor = getattr(layer, "weight_g", layer.weight)
            weight.mul_(gain)


@torch.no_grad()
def _set_vae_gains(vae: Any) -> None:
    """Keep fifteen residual units in a row from amplifying without bound, and the audio near the level of music."""
    for name, parameter in vae.named_parameters():
        if "res_unit" in name and name.endswith("conv2.weight_g"):
            parameter.fill_(_RESIDUAL_GAIN)
    vae.decoder.conv2.weight_g.fill_(_OUTPUT_GAIN)


@torch.no_grad()
def _fill(tensor: torch.Tensor, name: str, seed: int, device: torch.device) -> None:
    """Give "silence" and "no condition" the scale of latents and hidden states; no silence was ever encoded here."""
    draw_normal(tensor, 1.0, torch.Generator(device=device).manual_seed(tensor_seed(seed, name)))
