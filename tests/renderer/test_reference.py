"""From a checkpoint on disk to latents: what the reference implementation gives, for the same weights and noise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from acestep.checkpoints import ModelSelection, load_models
from acestep.renderer.conditioning import Conditions, ConditionSwitch, encode_conditions
from acestep.renderer.context import code_latents, context_latents, cover_latents, silence_latents
from acestep.renderer.diffusion import Guidance, make_schedule
from acestep.renderer.renderer import Renderer

GOLDEN = Path(__file__).parent.parent / "golden" / "checkpoint"
TOLERANCE = 1e-4

Outputs = dict[str, torch.Tensor]
Reference = tuple[Renderer, Outputs]


@pytest.fixture(scope="module")
def references() -> dict[str, Reference]:
    return {variant: (loaded(variant), load_file(GOLDEN / f"{variant}.safetensors")) for variant in ("turbo", "base")}


@pytest.fixture(scope="module", params=["turbo", "base"])
def reference(request, references) -> Reference:
    return references[request.param]


@pytest.fixture(scope="module")
def turbo(references) -> Reference:
    return references["turbo"]


def loaded(variant: str) -> Renderer:
    selection = ModelSelection(
        dit=f"acestep-v15-{variant}", lm=None, device="cpu", checkpoint_root=GOLDEN / "checkpoints"
    )
    return load_models(selection).renderer


def within(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    difference = (actual - expected).abs().max().item()
    print(f"largest difference {difference:.1e}")
    return difference < TOLERANCE


@torch.inference_mode()
def test_the_transformer_gives_the_velocities_of_the_reference(reference):
    renderer, golden = reference
    for number in (0, 1, 3):
        prefix = f"dit.{number}.in."
        inputs = {name.removeprefix(prefix): value for name, value in golden.items() if name.startswith(prefix)}
        (velocity,) = renderer.models.transformer(**inputs, return_dict=False)
        assert within(velocity, golden[f"dit.{number}.out"])


@torch.inference_mode()
def test_the_condition_encoder_gives_the_sequence_and_the_mask_of_the_reference(reference):
    renderer, golden = reference
    prefix = "condition_encoder.in."
    inputs = {name.removeprefix(prefix): value for name, value in golden.items() if name.startswith(prefix)}
    sequence, mask = renderer.models.condition_encoder(**inputs)
    assert within(sequence, golden["condition_encoder.out.0"])
    assert torch.equal(mask.bool(), golden["condition_encoder.out.1"])


@torch.inference_mode()
def test_a_source_is_encoded_as_the_codes_of_the_reference(reference):
    renderer, golden = reference
    models, latents = renderer.models, golden["audio_tokenizer.latents"]
    assert torch.equal(models.condition_encoder.silence_latent, golden["audio_tokenizer.silence"])
    quantized, indices = models.audio_tokenizer.tokenize(latents, models.condition_encoder.silence_latent)
    assert torch.equal(indices, golden["audio_tokenizer.indices"])
    assert within(quantized, golden["audio_tokenizer.quantized"])
    covered = cover_latents(models, latents)
    assert covered.shape == latents.shape
    assert within(covered, golden["audio_tokenizer.detokenized"][:, :63])


@torch.inference_mode()
def test_audio_codes_stand_for_the_vectors_and_the_latents_of_the_reference(reference):
    renderer, golden = reference
    vectors = renderer.models.audio_tokenizer.quantizer.get_output_from_indices(golden["quantizer.indices"])
    assert within(vectors, golden["quantizer.out"])
    latents = code_latents(renderer.models, golden["sampling.in.codes"].squeeze(-1).tolist())
    assert within(latents, golden["sampling.in.hints"])


@torch.inference_mode()
def run(reference: Reference, *, shift: float = 3.0, guidance: Guidance | None = None, codes: bool = False):
    renderer, golden = reference
    models = renderer.models
    encoded = encode_conditions(
        models,
        golden["sampling.in.text_hidden_states"],
        golden["sampling.in.lyric_hidden_states"],
        encoders=renderer.encoders,
    )
    if codes:
        source = code_latents(models, golden["sampling.in.codes"].squeeze(-1).tolist())
        noise = renderer.noise([42], source.shape[1])
    else:
        noise = golden["sampling.in.noise"]
        source = silence_latents(models, noise.shape[1])
    conditions = Conditions(encoded, torch.cat([source, torch.ones_like(source)], dim=-1))
    return renderer.denoise(conditions, make_schedule(8, shift), guidance, noise)


@pytest.mark.parametrize(
    ("variant", "name", "settings"),
    [
        ("turbo", "t2m_shift3", {}),
        ("turbo", "t2m_shift2", {"shift": 2.0}),
        ("turbo", "codes", {"codes": True}),
        ("base", "cfg1", {}),
        ("base", "cfg7_shift3", {"guidance": Guidance(7.0)}),
        ("base", "cfg7_int0.2_0.6", {"guidance": Guidance(7.0, (0.2, 0.6))}),
        ("base", "codes_cfg7", {"guidance": Guidance(7.0), "codes": True}),
    ],
)
def test_whole_runs_give_the_latents_of_the_reference(references, variant, name, settings):
    _, golden = references[variant]
    assert within(run(references[variant], **settings), golden[f"sampling.out.{name}"])


def cover(reference: Reference, *, cover_steps: int) -> torch.Tensor:
    """A cover of the source latents, turbo with shift 3."""
    renderer, golden = reference
    models, noise = renderer.models, golden["sampling.in.noise"]

    def conditions(text: str, source: torch.Tensor, switch: ConditionSwitch | None = None) -> Conditions:
        encoded = encode_conditions(
            models, golden[text], golden["sampling.in.lyric_hidden_states"], encoders=renderer.encoders
        )
        # Without the padding to the shortest song, which the run of the reference did not have.
        return Conditions(encoded, context_latents(models, source)[:, : noise.shape[1]], switch)

    with torch.inference_mode():
        silence = silence_latents(models, noise.shape[1])
        text_alone = conditions("sampling.in.non_cover_text_hidden_states", silence)
        source = cover_latents(models, golden["sampling.in.source_latents"])
        switched = conditions("sampling.in.text_hidden_states", source, ConditionSwitch(cover_steps, text_alone))
        return renderer.denoise(switched, make_schedule(8, 3.0), None, noise)


@pytest.mark.parametrize(("name", "cover_steps"), [("cover_src", 8), ("cover_src_s05", 4)])
def test_covers_give_the_latents_of_the_reference(turbo, name, cover_steps):
    _, golden = turbo
    assert within(cover(turbo, cover_steps=cover_steps), golden[f"sampling.out.{name}"])


def test_the_comparison_notices_another_cover_strength_schedule_and_guidance(references):
    (_, turbo), (_, base) = references["turbo"], references["base"]
    latents = cover(references["turbo"], cover_steps=5)
    assert (latents - turbo["sampling.out.cover_src_s05"]).abs().max() > 100 * TOLERANCE
    latents = run(references["turbo"], shift=2.9)
    assert (latents - turbo["sampling.out.t2m_shift3"]).abs().max() > 100 * TOLERANCE
    latents = run(references["base"], guidance=Guidance(6.9))
    assert (latents - base["sampling.out.cfg7_shift3"]).abs().max() > 100 * TOLERANCE
