"""The toy model of tests/golden/renderer, loaded into diffusers' modules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AceStepTransformer1DModel
from diffusers.pipelines.ace_step import AceStepAudioTokenDetokenizer, AceStepAudioTokenizer, AceStepConditionEncoder
from safetensors.torch import load_file

from acestep.renderer.models import RendererModels

GOLDEN = Path(__file__).parent.parent / "golden" / "renderer"

RENAMES = {
    ".q_proj.": ".to_q.",
    ".k_proj.": ".to_k.",
    ".v_proj.": ".to_v.",
    ".o_proj.": ".to_out.0.",
    ".q_norm.": ".norm_q.",
    ".k_norm.": ".norm_k.",
    "proj_in.1.": "proj_in_conv.",
    "proj_out.1.": "proj_out_conv.",
}


def load_reference_models(*, is_turbo: bool) -> RendererModels:
    config = json.loads((GOLDEN / "config.json").read_text())
    official = load_file(GOLDEN / "model.safetensors")

    def fill(module: Any, prefix: str, **extra: torch.Tensor) -> Any:
        state = {}
        for name, tensor in official.items():
            if name.startswith(prefix):
                renamed = name.removeprefix(prefix)
                for old, new in RENAMES.items():
                    renamed = renamed.replace(old, new)
                state[renamed] = tensor
        module.load_state_dict({**state, **extra}, strict=True)
        return module.eval().requires_grad_(False)

    shared = {
        name: config[name]
        for name in (
            "hidden_size",
            "intermediate_size",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "rope_theta",
            "rms_norm_eps",
            "sliding_window",
        )
    }
    pooling = {
        name: config[name]
        for name in ("audio_acoustic_hidden_dim", "pool_window_size", "num_attention_pooler_hidden_layers")
    }
    silence = torch.load(GOLDEN / "silence_latent.pt").transpose(1, 2)
    condition_encoder = AceStepConditionEncoder(
        **shared,
        **{
            name: config[name]
            for name in (
                "text_hidden_dim",
                "timbre_hidden_dim",
                "num_lyric_encoder_hidden_layers",
                "num_timbre_encoder_hidden_layers",
            )
        },
    )
    condition_encoder.silence_latent = torch.empty_like(silence)
    return RendererModels(
        name="reference",
        weights="checkpoint",
        is_turbo=is_turbo,
        default_shift=3.0,
        transformer=fill(
            AceStepTransformer1DModel(
                **shared,
                num_hidden_layers=config["num_hidden_layers"],
                in_channels=config["in_channels"],
                audio_acoustic_hidden_dim=config["audio_acoustic_hidden_dim"],
                patch_size=config["patch_size"],
            ),
            "decoder.",
        ),
        condition_encoder=fill(
            condition_encoder, "encoder.", null_condition_emb=official["null_condition_emb"], silence_latent=silence
        ),
        audio_tokenizer=fill(AceStepAudioTokenizer(**shared, **pooling, fsq_dim=config["fsq_dim"]), "tokenizer."),
        audio_token_detokenizer=fill(AceStepAudioTokenDetokenizer(**shared, **pooling), "detokenizer."),
        vae=None,
        text_encoder=None,
        text_tokenizer=None,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
