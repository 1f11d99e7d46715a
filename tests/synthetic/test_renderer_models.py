"""Random weights: true sizes, right buffers, equal bytes for equal seeds, and sound that can be heard."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.ace_step import AceStepAudioTokenizer
from transformers import Qwen3Model

from acestep.renderer.models import RendererModels, trained_shift
from acestep.synthetic.renderer import (
    RENDERER_CONFIGS,
    build_renderer_models,
    diffusers_modules,
    text_encoder_config,
)

CPU = torch.device("cpu")
MODULES = ("transformer", "condition_encoder", "audio_tokenizer", "audio_token_detokenizer", "vae", "text_encoder")

PUBLISHED = {
    "transformer": 1_575_458_880,
    "condition_encoder": 608_369_664,
    "audio_tokenizer": 105_032_198,
    "audio_token_detokenizer": 105_011_776,
    "vae": 168_695_426,
    "text_encoder": 595_776_512,
}
XL_TRANSFORMER = 4_168_897_088

DIGEST = """
import hashlib, torch
from acestep.renderer.models import trained_shift
from acestep.synthetic.renderer import build_renderer_models
from tests.synthetic.test_renderer_models import digest
print(digest(build_renderer_models("acestep-v15-tiny", device=torch.device("cpu"), dtype=torch.float32)))
"""


def digest(models: RendererModels) -> str:
    digest = hashlib.sha256()
    for role in MODULES:
        for name, tensor in sorted([*getattr(models, role).named_parameters(), *getattr(models, role).named_buffers()]):
            digest.update(f"{role}.{name}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def tiny() -> RendererModels:
    return build_renderer_models("acestep-v15-tiny", device=CPU, dtype=torch.float32)


def build_from(config, dtype) -> RendererModels:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RENDERER_CONFIGS, "under test", config)
        return build_renderer_models("under test", device=CPU, dtype=dtype)


@pytest.mark.parametrize("name", [name for name in RENDERER_CONFIGS if "tiny" not in name])
def test_true_sizes_are_those_of_the_published_models(name):
    config = RENDERER_CONFIGS[name]
    modules = diffusers_modules(config)
    with torch.device("meta"):
        modules["text_encoder"] = Qwen3Model(text_encoder_config(config))
    counts = {role: sum(p.numel() for p in module.parameters()) for role, module in modules.items()}
    expected = dict(PUBLISHED)
    if "-xl-" in name:
        expected["transformer"] = XL_TRANSFORMER
    assert counts == expected


def test_names_say_which_models_are_distilled_and_their_shift():
    assert {
        name: (config.is_turbo, trained_shift(name, is_turbo=config.is_turbo))
        for name, config in RENDERER_CONFIGS.items()
    } == {
        "acestep-v15-tiny": (True, 3.0),
        "acestep-v15-tiny-base": (False, 1.0),
        "acestep-v15-turbo": (True, 3.0),
        "acestep-v15-turbo-shift1": (True, 1.0),
        "acestep-v15-turbo-shift3": (True, 3.0),
        "acestep-v15-turbo-continuous": (True, 3.0),
        "acestep-v15-base": (False, 1.0),
        "acestep-v15-sft": (False, 1.0),
        "acestep-v15-xl-turbo": (True, 3.0),
        "acestep-v15-xl-base": (False, 1.0),
        "acestep-v15-xl-sft": (False, 1.0),
    }


def test_tiny_is_about_a_megabyte(tiny):
    size = sum(p.numel() * p.element_size() for role in MODULES for p in getattr(tiny, role).parameters())
    assert size < 1_500_000


def test_equal_seeds_give_equal_bytes_in_another_process(tiny):
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", DIGEST], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == digest(tiny)


def test_another_seed_gives_other_weights(tiny):
    other = build_renderer_models("acestep-v15-tiny", device=CPU, dtype=torch.float32, seed=1)
    assert not torch.equal(other.transformer.proj_in_conv.weight, tiny.transformer.proj_in_conv.weight)
    assert not torch.equal(other.condition_encoder.silence_latent, tiny.condition_encoder.silence_latent)


def test_building_leaves_the_global_generator_alone_and_is_quiet(caplog):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_renderer_models("acestep-v15-tiny-base", device=CPU, dtype=torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    assert caplog.messages == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_parameter_and_buffer_has_a_value(dtype):
    models = build_renderer_models("acestep-v15-tiny", device=CPU, dtype=dtype)
    for role in MODULES:
        module = getattr(models, role)
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            assert tensor.device == CPU, f"{role}.{name}"
            assert tensor.isfinite().all(), f"{role}.{name}"
        assert {parameter.dtype for parameter in module.parameters()} == {dtype}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotary_frequencies_are_those_of_a_model_built_in_memory(dtype):
    config = text_encoder_config(RENDERER_CONFIGS["acestep-v15-tiny"])
    expected = Qwen3Model(config).rotary_emb.inv_freq
    rotary = build_renderer_models("acestep-v15-tiny", device=CPU, dtype=dtype).text_encoder.rotary_emb
    assert rotary.inv_freq.dtype == torch.float32
    assert torch.equal(rotary.inv_freq, expected)
    assert torch.equal(rotary.original_inv_freq, expected)


def test_the_quantizer_decodes_all_codes_to_different_vectors(tiny):
    quantizer = tiny.audio_tokenizer.quantizer
    expected = AceStepAudioTokenizer(hidden_size=24, fsq_dim=24).quantizer
    for name, buffer in expected.named_buffers():
        assert torch.equal(getattr(quantizer, name), buffer)
    codes = quantizer.get_codes_from_indices(torch.arange(64_000).reshape(1, -1, 1))
    assert len(codes.reshape(-1, 6).unique(dim=0)) == 64_000


def test_silence_and_no_condition_have_the_scale_of_what_they_stand_for(tiny):
    for tensor in (tiny.condition_encoder.silence_latent, tiny.condition_encoder.null_condition_emb):
        assert 0.5 < tensor.std() < 1.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["acestep-v15-tiny", "acestep-v15-turbo"])
def test_audio_of_every_width_is_finite_audible_and_follows_the_latents(name, dtype):
    config = RENDERER_CONFIGS[name]
    if name == "acestep-v15-turbo":
        # The true widths of the VAE, which decides what is heard, with the rest small enough for a test.
        tiny = RENDERER_CONFIGS["acestep-v15-tiny"]
        narrow_text = {"text_encoder": tiny.text_encoder, "text_layout": tiny.text_layout}
        config = replace(tiny, vae=config.vae, latent_channels=config.latent_channels, **narrow_text)
    vae = build_from(config, dtype).vae
    latents = torch.randn(2, config.latent_channels, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.inference_mode():
        audio = vae.decode(latents).sample.float()
    assert audio.isfinite().all()
    assert 0.05 < audio.std() < 1.0
    assert audio.mean().abs() < 0.5 * audio.std()
    assert (audio[0] - audio[1]).std() > 0.5 * audio.std()


def test_an_unknown_name_is_a_key_error():
    with pytest.raises(KeyError, match="acestep-v15-turbbo"):
        build_renderer_models("acestep-v15-turbbo", device=CPU, dtype=torch.float32)
