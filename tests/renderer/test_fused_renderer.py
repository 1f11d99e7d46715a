"""The renderer's own kernels on the CPU, where Triton interprets them, against the models' own code."""

import copy
import json
import logging
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from acestep.offloading import ModelOffloader
from acestep.renderer import decoder as decoder_module
from acestep.renderer import velocity as velocity_module
from acestep.renderer.conditioning import Conditions
from acestep.renderer.decode_fallbacks import DecodeSettings, decode_bytes_per_frame
from acestep.renderer.decoder import VaeDecoder, decoder_agrees
from acestep.renderer.fused_decoder import WIDE_SHARED_MEMORY, FusedDecoder, can_fuse, knows, lay_out
from acestep.renderer.fused_transformer import FusedTransformer
from acestep.renderer.fused_transformer import can_fuse as can_fuse_transformer
from acestep.renderer.fused_transformer import knows as knows_transformer
from acestep.renderer.models import RendererModels
from acestep.renderer.preparation import fold_weight_norm
from acestep.renderer.velocity import ModuleForward, kernels_agree
from acestep.synthetic.renderer import RENDERER_CONFIGS, build_renderer_models, diffusers_modules
from acestep.types import Placement
from tests.planner.test_fused import SHARED_MEMORY

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models() -> RendererModels:
    built = build_renderer_models("acestep-v15-tiny", device=CPU, dtype=torch.float32)
    fold_weight_norm(built.vae)
    return built


def conditions(models: RendererModels, rows: int, frames: int, tokens: int, *, shared: bool) -> Conditions:
    config, generator = models.transformer.config, torch.Generator().manual_seed(frames)
    count = 1 if shared else rows
    states = torch.randn(count, tokens, config.encoder_hidden_size or config.hidden_size, generator=generator)
    context = torch.randn(count, frames, config.in_channels - config.audio_acoustic_hidden_dim, generator=generator)
    return Conditions(states, context).expanded(rows)


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("rows", "frames", "tokens", "shared"),
    [(1, 128, 17, True), (2, 131, 3, True), (3, 20, 40, False)],
    ids=["one song", "an odd length, two songs of one condition", "shorter than the window, a condition each"],
)
@torch.inference_mode()
def test_the_velocity_is_that_of_the_model(models: RendererModels, rows, frames, tokens, shared) -> None:
    shared_conditions = conditions(models, rows, frames, tokens, shared=shared)
    latents = torch.randn(rows, frames, models.transformer.config.audio_acoustic_hidden_dim)
    times = torch.tensor([0.7])
    expected, found = (
        function(latents, times, *function.prepare(shared_conditions))
        for function in (ModuleForward(models.transformer), FusedTransformer(models.transformer))
    )
    assert difference(found, expected) < 1e-5


def test_a_condition_that_all_songs_share_is_encoded_once(models: RendererModels) -> None:
    fused = FusedTransformer(models.transformer)
    with torch.inference_mode():
        shared, single = (fused.prepare(conditions(models, rows, 20, 5, shared=True)) for rows in (3, 1))
    assert [tensor.shape for tensor in shared] == [tensor.shape for tensor in single]


@pytest.mark.parametrize("by_descriptor", [False, True], ids=["by pointers", "by descriptors"])
@pytest.mark.parametrize("by_tap", [False, True], ids=["weights as they were loaded", "weights laid out"])
@pytest.mark.parametrize("frames", [1, 3])
@torch.inference_mode()
def test_the_audio_is_that_of_the_model(models: RendererModels, frames: int, by_tap: bool, by_descriptor: bool) -> None:
    """Correct with weights in either order; only the order of the kernels is fast."""
    latents = torch.randn(1, models.vae.config.decoder_input_channels, frames)
    vae = copy.deepcopy(models.vae)
    expected = vae.decode(latents, return_dict=False)[0]
    lay_out(vae.decoder, by_tap=by_tap)
    found = FusedDecoder(vae.decoder, by_descriptor=by_descriptor)(latents)
    assert difference(found, expected) < 1e-4


def test_weights_keep_their_values_in_the_order_of_the_kernels(models: RendererModels) -> None:
    vae = copy.deepcopy(models.vae)
    lay_out(vae.decoder)
    moved = copy.deepcopy(vae).to(torch.float64).to(torch.float32)
    for before, after, again in zip(*(part.decoder.parameters() for part in (models.vae, vae, moved)), strict=True):
        assert torch.equal(before, after)
        assert after.stride() == again.stride()
    assert not vae.decoder.conv1.weight.is_contiguous()
    lay_out(vae.decoder, by_tap=False)
    assert vae.decoder.conv1.weight.is_contiguous()


@pytest.mark.parametrize("name", [name for name in RENDERER_CONFIGS if "tiny" not in name])
def test_the_kernels_support_every_released_model(name: str) -> None:
    modules = diffusers_modules(RENDERER_CONFIGS[name], ("transformer", "vae"))
    assert knows_transformer(modules["transformer"])
    assert knows(modules["vae"].decoder)


def test_the_kernels_leave_quantised_weights_and_narrow_decoders_alone(models: RendererModels) -> None:
    class Quantised(nn.Parameter):
        pass

    transformer = diffusers_modules(RENDERER_CONFIGS["acestep-v15-turbo"], ("transformer",))["transformer"]
    projection = transformer.layers[0].mlp.up_proj
    projection.weight = Quantised(projection.weight.data)
    assert not knows_transformer(transformer)
    assert not knows(models.vae.decoder)


def test_off_cuda_the_models_own_code_runs(models: RendererModels) -> None:
    assert not can_fuse_transformer(models.transformer)
    assert not can_fuse(models.vae)
    assert not VaeDecoder(models, ModelOffloader(CPU, Placement()), DecodeSettings(), fuse=True).fuses


def test_kernels_that_agree_are_used(models: RendererModels) -> None:
    vae = copy.deepcopy(models.vae)
    assert kernels_agree(models)
    assert decoder_agrees(vae)
    assert not vae.decoder.conv1.weight.is_contiguous()


@pytest.mark.parametrize(
    ("broken", "said"),
    [(lambda *_, **__: torch.zeros(()), "differ"), (lambda *_, **__: 1 / 0, "ZeroDivisionError")],
    ids=["wrong result", "cannot be built"],
)
def test_kernels_that_fail_are_not_used_and_a_warning_is_logged(models, caplog, monkeypatch, broken, said) -> None:
    vae = copy.deepcopy(models.vae)
    monkeypatch.setattr(FusedTransformer, "__call__", broken)
    monkeypatch.setattr(FusedDecoder, "__call__", broken)
    with caplog.at_level(logging.WARNING):
        assert not kernels_agree(models)
        assert not decoder_agrees(vae)
    assert len([record for record in caplog.records if said in record.getMessage()]) == 2
    assert vae.decoder.conv1.weight.is_contiguous()


def test_running_out_of_memory_is_not_a_verdict_on_the_kernels(models: RendererModels, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("full")

    vae = copy.deepcopy(models.vae)
    monkeypatch.setattr(FusedTransformer, "__call__", full)
    monkeypatch.setattr(FusedDecoder, "__call__", full)
    for check in (lambda: kernels_agree(models), lambda: decoder_agrees(vae)):
        with pytest.raises(torch.OutOfMemoryError):
            check()
    assert vae.decoder.conv1.weight.is_contiguous()


def test_a_caller_can_keep_the_kernels_off(models: RendererModels, monkeypatch) -> None:
    monkeypatch.setattr(velocity_module, "can_fuse", lambda _: True)
    monkeypatch.setattr(decoder_module, "can_fuse", lambda _: True)
    offloader = ModelOffloader(CPU, Placement())
    compiling = ModelOffloader(CPU, Placement(compile=True))
    assert velocity_module.Velocity(models, compiling, fuse=True).path == "fused"
    assert velocity_module.Velocity(models, compiling, fuse=False).path == "compiled"
    assert velocity_module.Velocity(models, offloader, fuse=False).path == "eager"
    assert not VaeDecoder(models, offloader, DecodeSettings(), fuse=False).fuses


def test_less_memory_is_expected_of_a_tile_in_kernels_of_our_own() -> None:
    plain, fused = (decode_bytes_per_frame(128, torch.bfloat16, fused=fused) for fused in (False, True))
    assert fused < plain


@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_for_a_gpu_and_fit_it(capability: int) -> None:
    # In a process of its own, as Triton decides once whether to compile or to interpret.
    command = [sys.executable, "-m", "tests.renderer.compile_kernels", str(capability)]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kernels = json.loads(done.stdout.splitlines()[-1])
    assert {kernel["name"] for kernel in kernels} == {"modulated_norm", "norm_heads", "gated", "convolve"}
    for kernel in kernels:
        assert kernel["cubin_bytes"] > 0
        by_descriptor = kernel.get("by_descriptor", False)
        assert kernel["shared_memory"] <= (WIDE_SHARED_MEMORY if by_descriptor else SHARED_MEMORY)
        assert bool(kernel["descriptor_copies"]) == by_descriptor
    assert any(kernel["descriptor_copies"] for kernel in kernels) == (capability >= 90)
