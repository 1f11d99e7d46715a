"""``diffusers.AceStepPipeline`` used directly: its spans, and no other change of its behaviour."""

import copy

import pytest
import torch
from diffusers import AceStepPipeline, FlowMatchEulerDiscreteScheduler
from opentelemetry.trace import StatusCode
from transformers import PreTrainedTokenizerFast

from acestep.checkpoints import TINY_DIT, ModelSelection, load_models
from acestep.renderer.preparation import NativeAttention
from acestep_otel import semconv
from acestep_otel.instrumentor import AceStepInstrumentor
from tests.tracing import tree
from tests.weights.test_adapters import write_adapter

SONG = {"prompt": "a caption nobody may see", "lyrics": "[Verse]\nwords nobody may see", "audio_duration": 10.0}
SOURCE = torch.sin(torch.arange(48_000 * 2) / 40).expand(2, -1).mul(0.5)


@pytest.fixture
def pipeline():
    models = load_models(ModelSelection(dit=TINY_DIT, lm=None, device="cpu")).renderer.models
    pipeline = AceStepPipeline(
        vae=models.vae,
        text_encoder=models.text_encoder,
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=models.text_tokenizer, pad_token="<|endoftext|>"),
        transformer=models.transformer,
        condition_encoder=models.condition_encoder,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
        audio_tokenizer=models.audio_tokenizer,
        audio_token_detokenizer=models.audio_token_detokenizer,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make(pipeline, **changes):
    settings = {"num_inference_steps": 3, "guidance_scale": 1.0, "generator": torch.Generator().manual_seed(0)}
    return pipeline(**{**SONG, **settings, **changes}).audios


def test_a_song_has_the_same_tree_as_one_of_our_engine(traced, pipeline):
    traced.instrument()
    audio = make(pipeline)
    assert tree(traced.spans) == [
        (
            "generate_music",
            [
                "acestep.condition",
                ("acestep.dit", ["acestep.dit.step"] * 3),
                ("acestep.vae.decode", ["acestep.vae.tile"]),
            ],
        )
    ]
    (root,) = traced.named("generate_music")
    assert root.attributes[semconv.AUDIO_DURATION] == audio.shape[-1] / 48_000
    assert root.attributes[semconv.REQUEST_MODEL].startswith("acestep-v15-")
    for span in traced.spans:
        for name, value in span.attributes.items():
            assert type(value) is semconv.ATTRIBUTES[name].type, (span.name, name, value)
    assert "nobody may see" not in "".join(span.to_json() for span in traced.spans)


def test_steps_carry_index_time_and_guidance(traced, pipeline):
    traced.instrument()
    make(pipeline)
    steps = traced.named("acestep.dit.step")
    assert [step.attributes[semconv.DIT_STEP_INDEX] for step in steps] == [0, 1, 2]
    timesteps = [step.attributes[semconv.DIT_STEP_TIMESTEP] for step in steps]
    assert timesteps[0] == 1.0
    assert timesteps == sorted(timesteps, reverse=True)
    assert not any(step.attributes[semconv.DIT_STEP_GUIDED] for step in steps)
    (dit,) = traced.named("acestep.dit")
    assert dit.attributes[semconv.DIT_STEPS] == dit.attributes[semconv.DIT_STEPS_REQUESTED] == 3
    assert dit.attributes[semconv.LATENT_FRAMES] == 250


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_adapters_in_use_are_on_the_request(traced, pipeline, tmp_path):
    for seed, name in enumerate(("piano", "strings")):
        pipeline.load_lora_weights(write_adapter(tmp_path / name, seed=seed), adapter_name=name)
    traced.instrument(detail="stage")
    make(pipeline)
    pipeline.set_adapters(["piano", "strings"], [0.5, 2.0])
    make(pipeline)
    pipeline.disable_lora()
    make(pipeline)
    used = [
        (root.attributes.get(semconv.ADAPTER_NAMES), root.attributes.get(semconv.ADAPTER_SCALES))
        for root in traced.named("generate_music")
    ]
    # Of several that were loaded one after the other, diffusers uses the last.
    assert used == [("strings", "1"), ("piano,strings", "0.5,2"), (None, None)]


@pytest.mark.parametrize("stochastic", [False, True])
def test_the_diffusion_names_its_sampler(traced, pipeline, stochastic):
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, stochastic_sampling=stochastic)
    traced.instrument(detail="stage")
    make(pipeline)
    (dit,) = traced.named("acestep.dit")
    assert dit.attributes[semconv.DIT_INFER_METHOD] == ("sde" if stochastic else "ode")
    assert dit.attributes[semconv.DIT_SAMPLER_MODE] == "euler"
    assert dit.attributes[semconv.DIT_DCW] is False


def test_tiles_of_the_vae_are_spans(traced, pipeline):
    pipeline.vae.enable_tiling()
    pipeline.vae.tile_latent_min_length, pipeline.vae.tile_latent_overlap = 100, 16
    traced.instrument()
    make(pipeline)
    tiles = traced.named("acestep.vae.tile")
    assert [tile.attributes[semconv.VAE_TILE_INDEX] for tile in tiles] == list(range(len(tiles)))
    assert len(tiles) == traced.named("acestep.vae.decode")[0].attributes[semconv.VAE_TILES] > 2


def test_a_source_and_a_reference_are_encoded_within_the_conditions(traced, pipeline):
    traced.instrument()
    make(pipeline, task_type="cover", src_audio=SOURCE, reference_audio=SOURCE, audio_duration=None)
    assert tree(traced.spans)[0][1][0] == ("acestep.condition", ["acestep.vae.encode"] * 2)


def test_a_cover_of_less_strength_has_one_span_per_step(traced, pipeline):
    traced.instrument()
    make(pipeline, task_type="cover", src_audio=SOURCE, audio_cover_strength=0.5, audio_duration=None)
    assert len(traced.named("acestep.dit.step")) == 3


def test_a_loop_that_the_caller_interrupts_ends_before_the_decode(traced, pipeline):
    def stop(pipe, step, timestep, values):
        pipe._interrupt = step == 1
        return values

    traced.instrument()
    make(pipeline, callback_on_step_end=stop)
    assert [name for name in tree(traced.spans)[0][1] if isinstance(name, tuple)] == [
        ("acestep.dit", ["acestep.dit.step"] * 2),
        ("acestep.vae.decode", ["acestep.vae.tile"]),
    ]
    assert pipeline._interrupt is True


def test_the_audio_is_the_same_and_the_pipeline_is_left_as_it_was(traced, pipeline):
    plain = make(pipeline)
    before = {name: dict(vars(part)) for name, part in pipeline.components.items() if hasattr(part, "__dict__")}
    original = vars(AceStepPipeline)["__call__"]
    traced.instrument()
    assert torch.equal(make(pipeline), plain)
    AceStepInstrumentor().uninstrument()
    assert vars(AceStepPipeline)["__call__"] is original
    assert {name: set(vars(part)) for name, part in pipeline.components.items() if hasattr(part, "__dict__")} == {
        name: set(attributes) for name, attributes in before.items()
    }
    copy.deepcopy(pipeline.scheduler)


def test_what_the_application_has_compiled_stays_one_graph(traced, pipeline):
    """``fullgraph`` turns anything that a tracer would leave inside a compiled region into an error."""
    plain = make(pipeline)
    # Blocks without a choice of kernels: diffusers' own forward is no single graph to torch 2.11, traced or not.
    for block in pipeline.transformer.layers:
        for attention in (block.self_attn, block.cross_attn):
            attention.set_processor(NativeAttention())
        block.compile(fullgraph=True, backend="eager")
    pipeline.vae.decode = torch.compile(pipeline.vae.decode, fullgraph=True, backend="eager")
    traced.instrument()
    assert torch.allclose(make(pipeline), plain, atol=1e-5)
    assert len(traced.named("acestep.dit.step")) == 3
    assert len(traced.named("acestep.vae.decode")) == 1


def test_a_failure_closes_every_span_and_passes_through(traced, pipeline, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError(f"cannot use {SONG['prompt']}")

    monkeypatch.setattr(pipeline.scheduler, "step", fail)
    traced.instrument()
    with pytest.raises(ValueError, match="cannot use a caption"):
        make(pipeline)
    failed = [span.name for span in traced.spans if span.status.status_code is StatusCode.ERROR]
    assert failed == ["generate_music", "acestep.dit", "acestep.dit.step"]
    assert "nobody may see" not in "".join(span.to_json() for span in traced.spans)
