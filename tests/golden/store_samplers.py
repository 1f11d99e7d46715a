"""Store the results of the reference's samplers on the golden checkpoint, for ``tests/renderer/test_samplers.py``.

    python tests/golden/store_samplers.py PATH_TO_REFERENCE

Runs in an environment that can import the reference (`make test-released` makes one, with ``pytorch_wavelets`` beside
it), on a checkout of ACE-Step 1.5 whose models have the settings below. The stored outputs are those of the revision
that ``tests/golden/checkpoint/README.md`` names.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parent / "checkpoint"
FRAMES = 61
STEP_NOISE_SEED = 7
CLASSIC: dict[str, Any] = {"dcw_enabled": False, "shift": 3.0, "infer_steps": 8}
REPAINT = (20, 40)

RUNS: dict[str, dict[str, dict[str, Any]]] = {
    "turbo": {
        "dcw_double": {"dcw_enabled": True},
        "dcw_low": {"dcw_enabled": True, "dcw_mode": "low", "dcw_scaler": 0.1},
        "dcw_high": {"dcw_enabled": True, "dcw_mode": "high", "dcw_scaler": 0.1},
        "dcw_pix": {"dcw_enabled": True, "dcw_mode": "pix", "dcw_scaler": 0.02},
        "dcw_12_steps": {"dcw_enabled": True, "infer_steps": 12, "shift": 2.5},
        "sde": {"infer_method": "sde"},
        "sde_dcw": {"infer_method": "sde", "dcw_enabled": True},
        "heun": {"sampler_mode": "heun"},
        "heun_dcw": {"sampler_mode": "heun", "dcw_enabled": True},
        "timesteps": {"timesteps": torch.tensor([0.97, 0.76, 0.5, 0.3, 0.0])},
        "clamp_ema": {"velocity_norm_threshold": 0.5, "velocity_ema_factor": 0.1},
        "cover_noise": {"cover_noise_strength": 0.4},
        "repaint_balanced": {"repaint_injection_ratio": 0.5, "repaint_crossfade_frames": 12},
        "repaint_conservative": {"repaint_injection_ratio": 1.0, "repaint_crossfade_frames": 25},
    },
    "base": {
        "adg": {"diffusion_guidance_scale": 7.0, "use_adg": True},
        "sde": {"infer_method": "sde", "diffusion_guidance_scale": 7.0},
        "heun": {"sampler_mode": "heun", "diffusion_guidance_scale": 7.0},
        "heun_dcw": {"sampler_mode": "heun", "dcw_enabled": True, "diffusion_guidance_scale": 7.0},
        "heun_adg": {"sampler_mode": "heun", "diffusion_guidance_scale": 7.0, "use_adg": True},
        "dcw_cfg": {"dcw_enabled": True, "diffusion_guidance_scale": 7.0},
        "timesteps": {"timesteps": torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0]), "diffusion_guidance_scale": 7.0},
        "cover_noise": {"cover_noise_strength": 0.4, "diffusion_guidance_scale": 7.0},
    },
}


def load(variant: str) -> Any:
    """The reference's model with the golden weights."""
    code = importlib.import_module(f"acestep.models.{variant}.modeling_acestep_v15_{variant}")
    folder = GOLDEN / "checkpoints" / f"acestep-v15-{variant}"
    configuration = code.AceStepConfig(**json.loads((folder / "config.json").read_text()))
    configuration._attn_implementation = "sdpa"
    model = code.AceStepConditionGenerationModel(configuration).eval()
    missing = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    assert not missing.unexpected_keys, missing
    return model


def run(model: Any, golden: dict[str, torch.Tensor], settings: dict[str, Any]) -> torch.Tensor:
    """Latents of one run, from the golden inputs and the golden noise."""
    silence = torch.load(GOLDEN / "checkpoints" / "acestep-v15-turbo" / "silence_latent.pt", weights_only=True)
    silence = silence.transpose(1, 2).float()
    source = silence[:, :FRAMES]
    more: dict[str, Any] = {}
    if "cover_noise_strength" in settings:
        source = golden["sampling.in.source_latents"][:, :FRAMES]
    if "repaint_injection_ratio" in settings:
        clean = golden["sampling.in.source_latents"][:, :FRAMES]
        mask = torch.zeros(1, FRAMES, dtype=torch.bool)
        mask[:, slice(*REPAINT)] = True
        source = torch.where(mask.unsqueeze(-1), source, clean)
        more = {"repaint_mask": mask, "clean_src_latents": clean}
    model.prepare_noise = lambda *_args, **_kwargs: golden["sampling.in.noise"].clone()
    text, lyrics = golden["sampling.in.text_hidden_states"], golden["sampling.in.lyric_hidden_states"]
    torch.manual_seed(STEP_NOISE_SEED)
    with torch.inference_mode():
        outputs = model.generate_audio(
            text_hidden_states=text,
            text_attention_mask=torch.ones(text.shape[:2]),
            lyric_hidden_states=lyrics,
            lyric_attention_mask=torch.ones(lyrics.shape[:2]),
            refer_audio_acoustic_hidden_states_packed=silence[:, :750],
            refer_audio_order_mask=torch.zeros(1, dtype=torch.long),
            src_latents=source,
            chunk_masks=torch.ones_like(source),
            is_covers=torch.zeros(1, dtype=torch.long),
            silence_latent=silence,
            **(CLASSIC | settings | more),
        )
    return outputs["target_latents"].contiguous()


def main(reference: str) -> None:
    """Write one file per variant."""
    # Without it the reference leaves the correction out and only logs that it did.
    importlib.import_module("pytorch_wavelets")
    sys.path.insert(0, reference)
    for variant, runs in RUNS.items():
        model, golden = load(variant), load_file(GOLDEN / f"{variant}.safetensors")
        stored = {name: run(model, golden, settings) for name, settings in runs.items()}
        save_file(stored, GOLDEN / f"{variant}-samplers.safetensors")
        print(f"{variant}: {', '.join(f'{name} {latents.std():.3f}' for name, latents in stored.items())}")


if __name__ == "__main__":
    main(sys.argv[1])
