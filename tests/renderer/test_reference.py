"""The diffusion loop gives what the reference implementation gives, for the same weights and noise."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from acestep.renderer.conditioning import Conditions, ConditionSwitch, encode_conditions
from acestep.renderer.context import code_latents, context_latents, cover_latents, silence_latents
from acestep.renderer.guidance import Guidance
from acestep.renderer.renderer import Renderer
from acestep.renderer.schedule import make_schedule
from tests.renderer.reference import GOLDEN, load_reference_models

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "sampling.safetensors")


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(load_reference_models(is_turbo=False))


def run(renderer, golden, *, shift, guidance=None, codes=False) -> torch.Tensor:
    models = renderer.models
    with torch.inference_mode():
        encoded = encode_conditions(models, golden["in.text_hidden_states"], golden["in.lyric_hidden_states"])
        if codes:
            source = code_latents(models, golden["in.codes"].squeeze(-1).tolist())
            noise = renderer.noise([42], source.shape[1])
        else:
            noise = golden["in.noise"]
            source = silence_latents(models, noise.shape[1])
        conditions = Conditions(encoded, torch.cat([source, torch.ones_like(source)], dim=-1))
        return renderer.denoise(conditions, make_schedule(8, shift), guidance, noise)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("turbo.t2m_shift3", {"shift": 3.0}),
        ("turbo.t2m_shift2", {"shift": 2.0}),
        ("turbo.codes", {"shift": 3.0, "codes": True}),
        ("base.cfg1", {"shift": 3.0}),
        ("base.cfg7_shift3", {"shift": 3.0, "guidance": Guidance(7.0)}),
        ("base.cfg7_int0.2_0.6", {"shift": 3.0, "guidance": Guidance(7.0, (0.2, 0.6))}),
        ("base.codes_cfg7", {"shift": 3.0, "guidance": Guidance(7.0), "codes": True}),
    ],
)
def test_latents_equal_the_reference(renderer, golden, name, settings):
    latents = run(renderer, golden, **settings)
    difference = (latents - golden[name]).abs().max().item()
    print(f"{name}: largest difference {difference:.1e}")
    assert difference < TOLERANCE


def cover(renderer, golden, *, cover_steps: int) -> torch.Tensor:
    """A cover of the source latents, turbo with shift 3."""
    models, noise = renderer.models, golden["in.noise"]

    def conditions(text: str, source: torch.Tensor, switch: ConditionSwitch | None = None) -> Conditions:
        encoded = encode_conditions(models, golden[text], golden["in.lyric_hidden_states"])
        # Without the padding to the shortest song, which the run of the reference did not have.
        return Conditions(encoded, context_latents(models, source)[:, : noise.shape[1]], switch)

    with torch.inference_mode():
        text_alone = conditions("in.non_cover_text_hidden_states", silence_latents(models, noise.shape[1]))
        source = cover_latents(models, golden["in.source_latents"])
        told = conditions("in.text_hidden_states", source, ConditionSwitch(cover_steps, text_alone))
        return renderer.denoise(told, make_schedule(8, 3.0), None, noise)


@pytest.mark.parametrize(("name", "cover_steps"), [("turbo.cover_src", 8), ("turbo.cover_src_s05", 4)])
def test_covers_equal_the_reference(renderer, golden, name, cover_steps):
    difference = (cover(renderer, golden, cover_steps=cover_steps) - golden[name]).abs().max().item()
    print(f"{name}: largest difference {difference:.1e}")
    assert difference < TOLERANCE


def test_the_comparison_notices_another_cover_strength(renderer, golden):
    latents = cover(renderer, golden, cover_steps=5)
    assert (latents - golden["turbo.cover_src_s05"]).abs().max() > 100 * TOLERANCE


def test_a_source_is_heard_as_the_codes_of_the_reference(renderer, golden):
    latents = golden["tokenizer.latents"]
    tokenizer, silence = renderer.models.audio_tokenizer, renderer.models.condition_encoder.silence_latent
    quantized, indices = tokenizer.tokenize(latents, silence)
    assert torch.equal(indices, golden["tokenizer.indices"])
    assert torch.allclose(quantized, golden["tokenizer.quantized"], atol=TOLERANCE)
    covered = cover_latents(renderer.models, latents)
    assert covered.shape == latents.shape
    assert torch.allclose(covered, golden["tokenizer.detokenized"][:, :63], atol=TOLERANCE)


def test_audio_codes_stand_for_the_latents_of_the_reference(renderer, golden):
    latents = code_latents(renderer.models, golden["in.codes"].squeeze(-1).tolist())
    assert torch.allclose(latents, golden["in.hints"], atol=TOLERANCE)


def test_the_comparison_notices_another_schedule_and_another_guidance(renderer, golden):
    assert (run(renderer, golden, shift=2.9) - golden["turbo.t2m_shift3"]).abs().max() > 100 * TOLERANCE
    weaker = run(renderer, golden, shift=3.0, guidance=Guidance(6.9))
    assert (weaker - golden["base.cfg7_shift3"]).abs().max() > 100 * TOLERANCE
