"""Samplers on the golden checkpoint: what the reference gives, for the same weights, noise and settings."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from acestep.renderer.conditioning import Conditions, encode_conditions
from acestep.renderer.context import silence_latents
from acestep.renderer.diffusion import Guidance, custom_schedule, make_schedule
from acestep.renderer.sampling import Repaint, RepaintSettings, Sampler, retaken, step_noise, window_mask
from acestep.types import SamplerSettings
from tests.renderer.test_reference import GOLDEN, loaded, within

STEP_NOISE_SEED = 7
REPAINT = (20, 40)
DCW = {"dcw_enabled": True}


@pytest.fixture(scope="module")
def golden():
    return {
        variant: (
            loaded(variant),
            load_file(GOLDEN / f"{variant}.safetensors"),
            load_file(GOLDEN / f"{variant}-samplers.safetensors"),
        )
        for variant in ("turbo", "base")
    }


@torch.inference_mode()
def run(
    reference,
    *,
    steps=8,
    shift=3.0,
    timesteps=(),
    guidance=None,
    cover_noise=0.0,
    repaint=None,
    **sampling,
):
    renderer, inputs, _ = reference
    models = renderer.models
    encoded = encode_conditions(
        models,
        inputs["sampling.in.text_hidden_states"],
        inputs["sampling.in.lyric_hidden_states"],
        encoders=renderer.encoders,
    )
    noise, silence = inputs["sampling.in.noise"], silence_latents(models, 61)
    source, clean = silence, inputs["sampling.in.source_latents"]
    schedule = custom_schedule(timesteps, shift, is_turbo=models.is_turbo) if timesteps else make_schedule(steps, shift)
    start, held = noise, None
    if cover_noise:
        source, schedule = clean, schedule.from_level(1 - cover_noise)
        start = schedule.timesteps[0] * noise + (1 - schedule.timesteps[0]) * clean
    if repaint is not None:
        source = torch.cat([clean[:, : REPAINT[0]], silence[:, slice(*REPAINT)], clean[:, REPAINT[1] :]], dim=1)
        held = Repaint(clean, REPAINT, noise, repaint)
    conditions = Conditions(encoded, torch.cat([source, torch.ones_like(source)], dim=-1))
    # The reference draws from the global generator.
    generator = torch.Generator().manual_seed(STEP_NOISE_SEED)
    drawn = iter(lambda: torch.randn(noise.shape, generator=generator), None)
    sampler = Sampler(
        SamplerSettings(**sampling), len(schedule.timesteps), is_turbo=models.is_turbo, noise=drawn, repaint=held
    )
    return renderer.denoise(conditions, schedule, guidance, start, sampler=sampler)


RUNS = [
    ("turbo", "dcw_double", DCW),
    ("turbo", "dcw_low", {**DCW, "dcw_mode": "low", "dcw_scaler": 0.1}),
    ("turbo", "dcw_high", {**DCW, "dcw_mode": "high", "dcw_scaler": 0.1}),
    ("turbo", "dcw_pix", {**DCW, "dcw_mode": "pix", "dcw_scaler": 0.02}),
    ("turbo", "dcw_12_steps", {**DCW, "steps": 12, "shift": 2.5}),
    ("turbo", "sde", {"infer_method": "sde"}),
    ("turbo", "sde_dcw", {"infer_method": "sde", **DCW}),
    ("turbo", "heun", {"sampler_mode": "heun"}),
    ("turbo", "heun_dcw", {"sampler_mode": "heun", **DCW}),
    ("turbo", "timesteps", {"timesteps": (0.97, 0.76, 0.5, 0.3, 0.0)}),
    ("turbo", "clamp_ema", {"velocity_norm_threshold": 0.5, "velocity_ema_factor": 0.1}),
    ("turbo", "cover_noise", {"cover_noise": 0.4}),
    ("turbo", "repaint_balanced", {"repaint": RepaintSettings.of("balanced", 0.5)}),
    ("turbo", "repaint_conservative", {"repaint": RepaintSettings.of("conservative", 0.5)}),
    ("base", "adg", {"guidance": Guidance(7.0, by_angle=True)}),
    ("base", "sde", {"infer_method": "sde", "guidance": Guidance(7.0)}),
    ("base", "heun", {"sampler_mode": "heun", "guidance": Guidance(7.0)}),
    ("base", "heun_dcw", {"sampler_mode": "heun", **DCW, "guidance": Guidance(7.0)}),
    ("base", "heun_adg", {"sampler_mode": "heun", "guidance": Guidance(7.0, by_angle=True)}),
    ("base", "dcw_cfg", {**DCW, "guidance": Guidance(7.0)}),
    ("base", "timesteps", {"timesteps": (1.0, 0.8, 0.5, 0.2, 0.0), "guidance": Guidance(7.0)}),
    ("base", "cover_noise", {"cover_noise": 0.4, "guidance": Guidance(7.0)}),
]


@pytest.mark.parametrize(("variant", "name", "settings"), RUNS, ids=[f"{run[0]}-{run[1]}" for run in RUNS])
def test_samplers_give_the_latents_of_the_reference(golden, variant, name, settings):
    assert within(run(golden[variant], **settings), golden[variant][2][name])


def test_every_stored_run_is_compared(golden):
    compared = {(variant, name) for variant, name, _ in RUNS}
    assert compared == {(variant, name) for variant, (_, _, stored) in golden.items() for name in stored}


def test_the_comparison_notices_another_strength(golden):
    latents = run(golden["turbo"], dcw_enabled=True, dcw_scaler=0.06)
    assert (latents - golden["turbo"][2]["dcw_double"]).abs().max() > 1e-2


def test_noise_of_the_steps_belongs_to_the_seed_and_not_to_the_batch():
    together, alone = step_noise([1, 2], (10, 8)), step_noise([2], (10, 8))
    for _ in range(3):
        assert torch.equal(next(together)[1], next(alone)[0])
    first = torch.randn(10, 8, generator=torch.Generator().manual_seed(2))
    assert not torch.equal(next(step_noise([2], (10, 8)))[0], first)


def test_a_retake_is_on_the_way_from_one_draw_to_another():
    noise, other = torch.randn(2, 400, 64, generator=torch.Generator().manual_seed(3)).unbind()
    assert torch.equal(retaken(noise, other, 0.0), noise)
    assert torch.allclose(retaken(noise, other, 1.0), other, atol=1e-6)
    between = retaken(noise, other, 0.25)
    assert torch.allclose(between, math.cos(math.pi / 8) * noise + math.sin(math.pi / 8) * other)
    assert between.std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("mode", "strength", "settings"),
    [
        ("conservative", 0.9, RepaintSettings(1.0, 25, 0.05)),
        ("balanced", 0.5, RepaintSettings(0.5, 12, 0.025)),
        ("balanced", 1.0, RepaintSettings(0.0, 0, 0.0)),
        ("aggressive", 0.1, RepaintSettings(0.0, 0, 0.0)),
    ],
)
def test_repaint_modes_hold_the_source_as_firmly_as_the_reference(mode, strength, settings):
    assert RepaintSettings.of(mode, strength) == settings


def test_a_window_fades_outside_itself_and_not_beyond_the_song():
    mask = window_mask(10, (2, 5), 3)
    assert mask.tolist() == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0])
    assert window_mask(4, (-2, 9), 3).tolist() == [1, 1, 1, 1]


def test_heun_evaluates_a_step_twice_except_with_sde():
    assert replace(SamplerSettings(), sampler_mode="heun").corrects_steps
    assert not SamplerSettings(sampler_mode="heun", infer_method="sde").corrects_steps
