"""Instrumentation around real runs: the span tree, every attribute's name and type, and that nothing else changes."""

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
import torch
from opentelemetry import trace
from opentelemetry.trace import StatusCode

from acestep import checkpoints
from acestep.blueprints import BlueprintWriter, create_sample, format_sample, understand_music, understand_recording
from acestep.checkpoints import TINY_DIT, TINY_LM, Models, ModelSelection, load_models
from acestep.errors import AceStepError, AudioReadError, InvalidRequest, OutOfMemory
from acestep.inference import MusicPipeline, generate_music
from acestep.offloading import ModelOffloader, stored_bytes
from acestep.planner.backends.pt import PtBackend
from acestep.planner.planner import Planner
from acestep.planner.prompts import Prompts
from acestep.planner.songwriter import Songwriter
from acestep.renderer.audio_encoder import AudioEncoder
from acestep.renderer.decoder import VaeDecoder
from acestep.renderer.models import AudioEncoderModels
from acestep.renderer.preparation import prepare
from acestep.renderer.renderer import Renderer
from acestep.synthetic.language_model import build_language_model
from acestep.synthetic.renderer import build_renderer_models
from acestep.types import (
    AdapterScale,
    GenerationRequest,
    Placement,
    SamplerSettings,
    SamplingSettings,
    SongMetadata,
    SongwritingSettings,
)
from acestep.weights.adapters import Adapter
from acestep_otel import semconv
from acestep_otel.instrumentor import AceStepInstrumentor
from acestep_otel.recording import guidance_share, measure_guidance_share, warmup
from acestep_otel.recording.clock import HostClock
from acestep_otel.recording.trace_tree import RequestRecording
from acestep_otel.recording.vram import VramTracker
from tests.tracing import tree
from tests.weights.test_adapters import write_adapter

SONG = GenerationRequest(
    caption="a caption nobody may see",
    lyrics="[Verse]\nwords nobody may see",
    metadata=SongMetadata(bpm=120, keyscale="C major", timesignature="4", language="en"),
    duration=10,
    seeds=(7,),
    thinking=True,
    use_cot_metas=True,
    use_cot_caption=True,
)
SETTINGS = SongwritingSettings(seed=7, lyrics_token_limit=20)
VERBS = {
    "understand_music": lambda planner: understand_music(planner, (1, 2, 3), settings=SETTINGS),
    "create_sample": lambda planner: create_sample(planner, "a wish nobody may see", settings=SETTINGS),
    "format_sample": lambda planner: format_sample(planner, SONG.caption, SONG.lyrics, settings=SETTINGS),
}
OWNERS = (
    MusicPipeline,
    BlueprintWriter,
    checkpoints,
    Planner,
    Songwriter,
    PtBackend,
    Renderer,
    VaeDecoder,
    ModelOffloader,
)


def identities():
    """The attributes of every owner of a patched function, by identity: a wrapper is equal to what it wraps."""
    return [{name: id(value) for name, value in vars(owner).items()} for owner in OWNERS]


def seconds(span):
    return (span.end_time - span.start_time) / 1e9


def test_a_thinking_run_has_the_documented_span_tree(traced, tiny_models, tmp_path):
    traced.instrument()
    generate_music(tiny_models, replace(SONG, inference_steps=3), save_dir=tmp_path)
    assert tree(traced.spans) == [
        (
            "generate_music",
            [
                ("acestep.lm", ["acestep.lm.cot", "acestep.lm.codes"]),
                "acestep.condition",
                ("acestep.dit", ["acestep.dit.step"] * 3),
                ("acestep.vae.decode", ["acestep.vae.tile"]),
                "acestep.audio.save",
            ],
        )
    ]


def test_models_that_wait_on_the_host_move_once_around_what_needs_them(traced):
    """R133, R134: what a move costs is no stage's own time."""
    cpu, gpu = torch.device("cpu"), torch.device("cpu", 0)  # The same memory, but another device to a model.
    offloader = ModelOffloader(gpu, Placement(offload_to_cpu=True, offload_dit_to_cpu=True))
    renderer = build_renderer_models(TINY_DIT, device=cpu, dtype=torch.float32)
    prepare(renderer, offloader)
    planner = Planner.from_language_model(
        build_language_model(TINY_LM, device=cpu, dtype=torch.float32), offloader=offloader
    )
    traced.instrument(detail="stage")
    generate_music(Models(Renderer(renderer, offloader), planner, cpu), SONG)
    move = "acestep.offload.move"
    assert tree(traced.spans) == [
        (
            "generate_music",
            [
                move,
                ("acestep.lm", ["acestep.lm.cot", "acestep.lm.codes"]),
                move,
                # The text encoder, then the condition encoder and both models of the audio codes.
                ("acestep.condition", [move] * (2 + 6)),
                move,
                "acestep.dit",
                move,
                move,
                "acestep.vae.decode",
                move,
            ],
        )
    ]
    moves = sorted(traced.named(move), key=lambda span: span.start_time)
    around_stages = [span for span in moves if span.parent == traced.named("generate_music")[0].context]
    assert [
        (span.attributes["acestep.offload.model"], span.attributes["acestep.offload.direction"])
        for span in around_stages
    ] == [
        (name, direction) for name in ("language_model", "transformer", "vae") for direction in ("to_device", "to_host")
    ]
    weights = {"language_model": planner.backend.model.body, "transformer": renderer.transformer, "vae": renderer.vae}
    for span in around_stages:
        assert span.attributes["acestep.offload.bytes"] == stored_bytes(
            weights[span.attributes["acestep.offload.model"]]
        )
    (root,) = traced.named("generate_music")
    assert root.attributes["acestep.offload"] is root.attributes["acestep.offload.dit"] is True
    assert root.attributes["acestep.quantization"] == "none"


def test_adapters_are_on_the_request_and_a_switch_is_a_span(traced, tmp_path):
    for seed, name in enumerate(("piano", "strings")):
        write_adapter(tmp_path / name, seed=seed)
    adapters = (Adapter(tmp_path / "piano", 0.8), Adapter(tmp_path / "strings", name="violins"))
    models = load_models(ModelSelection(dit=TINY_DIT, lm=None, device="cpu", adapters=adapters))
    song = replace(SONG, thinking=False, use_cot_metas=False, use_cot_caption=False, inference_steps=1)
    traced.instrument(detail="stage")
    violins = (AdapterScale("violins", 0.25), AdapterScale("piano", 0.0))
    for chosen in (None, None, violins, ()):
        generate_music(models, replace(song, adapters=chosen))
    with pytest.raises(InvalidRequest):
        generate_music(models, replace(song, adapters=(AdapterScale("words nobody may see"), AdapterScale("piano"))))
    used = [
        (root.attributes.get(semconv.ADAPTER_NAMES), root.attributes.get(semconv.ADAPTER_SCALES))
        for root in traced.named("generate_music")
    ]
    assert used == [("piano,violins", "0.8,1")] * 2 + [("violins", "0.25"), (None, None), ("piano", "1")]
    stages = ["acestep.condition", "acestep.dit", "acestep.vae.decode"]
    switched = ["acestep.condition", "acestep.adapter.switch", *stages[1:]]
    assert [children for _, children in tree(traced.spans)[:4]] == [switched, stages, switched, switched]
    switches = traced.named("acestep.adapter.switch")
    assert [span.attributes.get(semconv.ADAPTER_NAMES) for span in switches] == ["piano,violins", "violins", None]
    assert "nobody may see" not in "".join(span.to_json() for span in traced.spans)


@pytest.mark.parametrize(
    ("sampler", "attributes"),
    [
        (SamplerSettings(), ("ode", "euler", True)),
        (SamplerSettings(sampler_mode="heun", dcw_enabled=False), ("ode", "heun", False)),
        (SamplerSettings(infer_method="sde", sampler_mode="heun"), ("sde", "euler", True)),
    ],
)
def test_the_diffusion_names_its_sampler(traced, tiny_models, sampler, attributes):
    traced.instrument(detail="stage")
    song = replace(SONG, thinking=False, use_cot_metas=False, use_cot_caption=False, inference_steps=2)
    generate_music(tiny_models, replace(song, sampler=sampler))
    (dit,) = traced.named("acestep.dit")
    names = (semconv.DIT_INFER_METHOD, semconv.DIT_SAMPLER_MODE, semconv.DIT_DCW)
    assert tuple(dit.attributes[name] for name in names) == attributes


@pytest.mark.parametrize("verb", VERBS)
def test_a_song_in_words_has_the_documented_span_tree(traced, tiny_models, verb):
    traced.instrument(detail="token")
    VERBS[verb](tiny_models.planner)
    windows = tree(traced.spans)[0][1][0][1]
    assert tree(traced.spans) == [(verb, [("acestep.lm", windows)])]
    assert [name for name, _ in windows] == ["acestep.lm.cot", "acestep.lm.lyrics"]
    for span in traced.spans:
        assert (span.parent is None) == (not semconv.SPANS[span.name].parents)
        for name, value in span.attributes.items():
            assert type(value) is semconv.ATTRIBUTES[name].type, (span.name, name, value)
    (lm,) = traced.named("acestep.lm")
    assert lm.attributes[semconv.LM_GUIDANCE_SCALE] == 1.0
    assert lm.attributes[semconv.LM_CFG_DURATION] == 0.0
    (lyrics,) = traced.named("acestep.lm.lyrics")
    assert lyrics.attributes[semconv.LM_SAMPLED_TOKENS] == 20
    assert lyrics.attributes[semconv.LM_CONSTRAINED] is False
    assert lyrics.attributes[semconv.LM_TIME_TO_FIRST_TOKEN] > 0
    assert lyrics.attributes[semconv.LM_CONSTRAINED_DECODING_DURATION] == 0.0
    (cot,) = traced.named("acestep.lm.cot")
    assert cot.attributes[semconv.LM_CONSTRAINED] is True


def test_requests_are_counted_by_their_verb(traced, tiny_models):
    traced.instrument()
    for verb in VERBS.values():
        verb(tiny_models.planner)
    counted = {point.attributes[semconv.STAGE]: point.value for point in traced.metric(semconv.REQUESTS)}
    assert counted == dict.fromkeys(VERBS, 1)
    assert traced.metric(semconv.AUDIO_SECONDS) == []


@pytest.mark.parametrize("verb", VERBS)
def test_wishes_and_drafts_stay_off_spans_unless_asked_for(traced, tiny_models, verb, monkeypatch):
    traced.instrument()
    VERBS[verb](tiny_models.planner)
    assert "nobody may see" not in "".join(span.to_json() for span in traced.spans)
    AceStepInstrumentor().uninstrument()
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "SPAN_ONLY")
    traced.instrument()
    VERBS[verb](tiny_models.planner)
    captured = {semconv.QUERY, semconv.CAPTION, semconv.LYRICS} & set(traced.named(verb)[-1].attributes)
    expected = {"create_sample": {semconv.QUERY}, "format_sample": {semconv.CAPTION, semconv.LYRICS}}
    assert captured == expected.get(verb, set())


def test_a_recording_s_name_stays_off_spans(traced, tiny_models, tmp_path):
    encoder = AudioEncoder(AudioEncoderModels.of(tiny_models.renderer.models), tiny_models.renderer.offloader)
    traced.instrument()
    with pytest.raises(AudioReadError, match="nobody may see"):
        understand_recording(tiny_models.planner, encoder, tmp_path / "what nobody may see.wav")
    (root,) = traced.named("understand_music")
    assert root.events
    assert str(tmp_path) not in root.to_json()
    assert "nobody may see" not in root.to_json()


def test_the_negative_prompt_is_not_on_spans(traced, tiny_models, monkeypatch):
    negative = "no drums that anybody could hear"

    def quotes_it(*_args, **_kwargs):
        raise InvalidRequest(f"{negative!r} cannot be said")

    monkeypatch.setattr(Prompts, "unconditional_codes", quotes_it)
    traced.instrument()
    with pytest.raises(InvalidRequest):
        generate_music(tiny_models, replace(SONG, sampling=SamplingSettings(negative_prompt=negative)))
    (root,) = traced.named("generate_music")
    assert root.events
    assert "that anybody" not in "".join(span.to_json() for span in traced.spans)


def test_encoding_a_source_and_a_reference_is_part_of_the_conditions(traced, tiny_models, tmp_path):
    samples = torch.randn(48_000 * 6, 2, generator=torch.Generator().manual_seed(0)).mul(0.1).numpy()
    soundfile.write(tmp_path / "source.wav", samples, 48_000)
    path = tmp_path / "source.wav"
    traced.instrument()
    cover = GenerationRequest(task_type="cover", src_audio=path, reference_audio=path, inference_steps=1, thinking=True)
    generate_music(tiny_models, cover)
    assert tree(traced.spans) == [
        (
            "generate_music",
            [
                ("acestep.condition", ["acestep.vae.encode"] * 2),
                ("acestep.dit", ["acestep.dit.step"]),
                ("acestep.vae.decode", ["acestep.vae.tile"]),
            ],
        )
    ]
    source, reference = traced.named("acestep.vae.encode")
    figures = (semconv.LATENT_FRAMES, semconv.VAE_TILES, semconv.VAE_TILE_LENGTH, semconv.VAE_OVERLAP)
    assert [source.attributes[name] for name in figures] == [150, 1, 150, 7]
    assert [reference.attributes[name] for name in figures] == [750, 2, 512, 7]
    (root,) = traced.named("generate_music")
    assert root.attributes[semconv.TASK] == "cover"
    assert root.attributes[semconv.THINKING] is False


def test_every_attribute_is_declared_and_has_its_declared_type(traced, tiny_models, tmp_path):
    traced.instrument(detail="token")
    with warmup(), guidance_share(measure_guidance_share(tiny_models, SONG)):
        generate_music(tiny_models, SONG, save_dir=tmp_path)
    names = {span.context.span_id: span.name for span in traced.spans}
    for span in traced.spans:
        parents = semconv.SPANS[span.name].parents
        assert names[span.parent.span_id] in parents if span.parent else not parents, span.name
        for name, value in span.attributes.items():
            assert type(value) is semconv.ATTRIBUTES[name].type, (span.name, name, value)
        assert span.attributes[semconv.WARMUP] is True
        assert isinstance(span.start_time, int)
        assert isinstance(span.end_time, int)


def test_rows_nest_and_the_planner_s_rows_sum(traced, tiny_models, tmp_path, monkeypatch):
    # On a busy machine the tiny model's measured share can be nothing.
    for measured in ("measure_guidance_share", "measure_prefill_guidance_share"):
        monkeypatch.setattr(PtBackend, measured, lambda *_: 0.25)
    traced.instrument()
    with guidance_share(measure_guidance_share(tiny_models, SONG)):
        generate_music(tiny_models, SONG, save_dir=tmp_path)
    (root,) = traced.named("generate_music")
    top = [s for s in traced.spans if s.parent and s.parent.span_id == root.context.span_id]
    assert sum(map(seconds, top)) <= seconds(root)
    (lm,) = traced.named("acestep.lm")
    rows = [
        lm.attributes[name]
        for name in (
            semconv.LM_TOKEN_GENERATION_DURATION,
            semconv.LM_CONSTRAINED_DECODING_DURATION,
            semconv.LM_CFG_DURATION,
        )
    ]
    assert all(row > 0 for row in rows)
    assert sum(rows) == pytest.approx(seconds(lm))
    (dit,) = traced.named("acestep.dit")
    assert sum(map(seconds, traced.named("acestep.dit.step"))) <= seconds(dit)


def test_token_figures_are_those_of_the_run(traced, tiny_models):
    traced.instrument()
    result = generate_music(tiny_models, replace(SONG, batch_size=2, seeds=(7, 8)))
    (codes,) = traced.named("acestep.lm.codes")
    assert codes.attributes[semconv.LM_SAMPLED_TOKENS] == sum(len(song.audio_codes) for song in result.songs) == 100
    assert codes.attributes[semconv.LM_UNCONDITIONAL_TOKENS] > 0
    assert 0 < codes.attributes[semconv.LM_TIME_TO_FIRST_TOKEN] < seconds(codes)
    assert codes.attributes[semconv.LM_PREFILL_DURATION] < codes.attributes[semconv.LM_TIME_TO_FIRST_TOKEN]
    assert codes.attributes[semconv.LM_TOKENS_PER_SECOND] > 0
    (cot,) = traced.named("acestep.lm.cot")
    assert cot.attributes[semconv.LM_CONSTRAINED] is True
    assert cot.attributes[semconv.LM_FORCED_TOKENS] > 10
    assert cot.attributes[semconv.LM_SAMPLED_TOKENS] > 0
    assert semconv.LM_CFG_SHARE not in cot.attributes


def test_steps_carry_their_index_and_timestep(traced, tiny_models):
    traced.instrument()
    generate_music(tiny_models, replace(SONG, thinking=False, use_cot_metas=False, use_cot_caption=False))
    steps = traced.named("acestep.dit.step")
    assert [s.attributes[semconv.DIT_STEP_INDEX] for s in steps] == list(range(8))
    timesteps = [s.attributes[semconv.DIT_STEP_TIMESTEP] for s in steps]
    assert timesteps == sorted(timesteps, reverse=True)
    assert timesteps[0] == 1.0
    (dit,) = traced.named("acestep.dit")
    assert dit.attributes[semconv.DIT_STEPS] == dit.attributes[semconv.DIT_STEPS_REQUESTED] == 8
    assert traced.named("acestep.lm") == []


@pytest.mark.parametrize(
    ("detail", "absent", "present"),
    [
        ("stage", {"acestep.dit.step", "acestep.vae.tile", "acestep.lm.tokens"}, {"acestep.dit", "acestep.lm.codes"}),
        ("step", {"acestep.lm.tokens"}, {"acestep.dit.step", "acestep.vae.tile"}),
        ("token", set(), {"acestep.lm.tokens", "acestep.dit.step"}),
    ],
)
def test_the_detail_level_decides_how_deep_the_tree_goes(traced, tiny_models, detail, absent, present):
    traced.instrument(detail=detail)
    generate_music(tiny_models, SONG)
    names = {span.name for span in traced.spans}
    assert present <= names
    assert not absent & names
    (dit,) = traced.named("acestep.dit")
    assert dit.attributes[semconv.DIT_STEPS] == 8


def test_detail_off_patches_nothing(traced):
    before = identities()
    traced.instrument(detail="off")
    assert identities() == before


def test_uninstrument_restores_every_original(traced, tiny_models):
    before = identities()
    traced.instrument()
    assert identities() != before
    AceStepInstrumentor().uninstrument()
    assert identities() == before
    generate_music(tiny_models, SONG)
    assert traced.spans == []


def test_a_name_that_was_imported_before_is_traced(traced, tiny_models):
    from acestep import create_sample as kept_create
    from acestep import generate_music as kept_generate

    traced.instrument()
    kept_generate(tiny_models, SONG)
    kept_create(tiny_models.planner, "a wish", settings=SETTINGS)
    assert [span.name for span in traced.spans if span.parent is None] == ["generate_music", "create_sample"]


def test_a_kept_reference_is_not_traced_after_uninstrumenting(traced, tiny_models):
    import acestep.inference

    traced.instrument()
    kept = acestep.inference.generate_music
    kept(tiny_models, SONG)
    before = traced.spans
    assert before
    AceStepInstrumentor().uninstrument()
    kept(tiny_models, SONG)
    assert traced.spans == before


def test_results_are_the_same_with_and_without_tracing(traced, tiny_models):
    plain = generate_music(tiny_models, SONG).songs[0]
    traced.instrument(detail="token")
    observed = generate_music(tiny_models, SONG).songs[0]
    assert torch.equal(plain.audio, observed.audio)
    assert plain.audio_codes == observed.audio_codes


def test_a_failed_run_closes_its_spans_and_keeps_what_was_measured(traced, tiny_models, monkeypatch):
    original = Renderer.predict_velocity
    calls = []

    def fails_in_the_third_step(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(*args, **kwargs)

    monkeypatch.setattr(Renderer, "predict_velocity", fails_in_the_third_step)
    traced.instrument()
    with pytest.raises(Exception, match="out of memory in stage 'dit'"):
        generate_music(tiny_models, SONG)
    assert [s.status.status_code for s in traced.named("acestep.dit.step")] == [
        StatusCode.UNSET,
        StatusCode.UNSET,
        StatusCode.ERROR,
    ]
    (root,) = traced.named("generate_music")
    assert root.status.status_code is StatusCode.ERROR
    assert root.attributes[semconv.ERROR_TYPE] == "OutOfMemory"
    assert root.events[0].attributes["exception.type"] == "acestep.errors.OutOfMemory"
    assert traced.named("acestep.lm.codes")[0].status.status_code is StatusCode.UNSET
    (oom,) = [p for p in traced.metric(semconv.OUT_OF_MEMORY) if p.attributes[semconv.STAGE] == "dit"]
    assert oom.value == 1


def test_an_interrupt_passes_through_and_is_recorded(traced, tiny_models):
    traced.instrument()

    def interrupt(progress):
        if progress.stage == "dit":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_music(tiny_models, SONG, progress=interrupt)
    (root,) = traced.named("generate_music")
    assert root.attributes[semconv.ERROR_TYPE] == "KeyboardInterrupt"


def test_requests_are_counted_while_they_run_and_not_after_it_however_they_end(traced, tiny_models, monkeypatch):
    traced.instrument(detail="stage")
    seen = []

    def fails(*_, **__):
        seen.append([(point.value, dict(point.attributes)) for point in traced.metric(semconv.REQUESTS_ACTIVE)])
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Renderer, "predict_velocity", fails)
    with pytest.raises(OutOfMemory):
        generate_music(tiny_models, replace(SONG, thinking=False, use_cot_metas=False, use_cot_caption=False))
    attributes = {semconv.REQUEST_MODEL: tiny_models.renderer.models.name, semconv.STAGE: "generate_music"}
    assert seen == [[(1, attributes)]]
    assert [point.value for point in traced.metric(semconv.REQUESTS_ACTIVE)] == [0]


def test_what_the_process_may_take_is_absent_off_cuda_and_else_a_gauge(traced, tiny_models, monkeypatch):
    traced.instrument(detail="stage")
    request = replace(SONG, thinking=False, use_cot_metas=False, use_cot_caption=False)
    generate_music(tiny_models, request)
    assert traced.metric(semconv.VRAM_LIMIT) == []
    monkeypatch.setattr(VramTracker, "limit", lambda *_: 7_000)
    generate_music(tiny_models, request)
    assert [point.value for point in traced.metric(semconv.VRAM_LIMIT)] == [7_000]


@pytest.mark.parametrize("fraction", [1.0, 0.1])
def test_the_limit_is_the_memory_fraction_of_the_process(monkeypatch, fraction):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80_000))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: fraction)
    assert VramTracker().limit(torch.device("cuda", 0)) == int(80_000 * fraction)
    assert VramTracker().limit(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (RequestRecording, ("begin", "end")),
        (HostClock, ("mark",)),
        (VramTracker, ("begin",)),
        (VramTracker, ("read",)),
        (VramTracker, ("limit",)),
    ],
)
def test_faults_of_the_tracing_layer_never_reach_the_song(traced, tiny_models, monkeypatch, owner, names):
    traced.instrument()
    for name in names:
        monkeypatch.setattr(owner, name, lambda *a, **k: 1 / 0)
    assert generate_music(tiny_models, SONG).songs[0].audio.abs().max() > 0.5


@pytest.mark.parametrize(("owner", "name"), [(HostClock, "mark"), (VramTracker, "read")])
def test_a_fault_costs_what_it_would_have_measured_and_not_the_trace(traced, tiny_models, monkeypatch, owner, name):
    traced.instrument(detail="stage")
    started = []
    original = getattr(owner, name)

    def fails_after_the_start(*args):
        started.append(1)
        # A mark that begins a stage succeeds, the one that ends it does not.
        return 1 / 0 if name == "read" or len(started) % 2 == 0 else original(*args)

    monkeypatch.setattr(owner, name, fails_after_the_start)
    generate_music(tiny_models, replace(SONG, thinking=False, use_cot_metas=False, use_cot_caption=False))
    (root,) = traced.named("generate_music")
    stages = [s.name for s in traced.spans if s.parent and s.parent.span_id == root.context.span_id]
    assert stages == ["acestep.condition", "acestep.dit", "acestep.vae.decode"]


def test_captions_and_lyrics_stay_off_spans_unless_asked_for(traced, tiny_models, monkeypatch):
    traced.instrument()
    generate_music(tiny_models, SONG)
    assert "nobody may see" not in "".join(span.to_json() for span in traced.spans)
    AceStepInstrumentor().uninstrument()
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "SPAN_ONLY")
    traced.instrument()
    generate_music(tiny_models, SONG)
    root = traced.named("generate_music")[-1]
    assert (root.attributes[semconv.CAPTION], root.attributes[semconv.LYRICS]) == (SONG.caption, SONG.lyrics)
    (message,) = json.loads(root.attributes[semconv.INPUT_MESSAGES])
    assert message["role"] == "user"
    assert [part["content"] for part in message["parts"]] == [SONG.caption, SONG.lyrics]


def test_tokens_of_reasoning_are_those_of_the_first_phase(traced, tiny_models):
    traced.instrument()
    generate_music(tiny_models, replace(SONG, thinking=True, use_cot_metas=True))
    (planner,), (reasoning,), (codes,) = (traced.named(name) for name in (semconv.LM, semconv.LM_COT, semconv.LM_CODES))
    reasoned = reasoning.attributes[semconv.USAGE_OUTPUT_TOKENS]
    assert reasoned > 0
    for span in (planner, reasoning):
        assert span.attributes[semconv.USAGE_REASONING_OUTPUT_TOKENS] == reasoned
    assert planner.attributes[semconv.USAGE_OUTPUT_TOKENS] == reasoned + codes.attributes[semconv.USAGE_OUTPUT_TOKENS]
    assert semconv.USAGE_REASONING_OUTPUT_TOKENS not in codes.attributes


def test_loading_is_a_span_per_model(traced):
    traced.instrument()
    checkpoints.load_models(ModelSelection(dit=TINY_DIT, lm=TINY_LM, device="cpu"))
    loads = traced.named("acestep.model.load")
    assert {(s.attributes[semconv.MODEL_NAME], s.attributes[semconv.MODEL_ROLE]) for s in loads} == {
        (TINY_DIT, "renderer"),
        (TINY_LM, "planner"),
    }


def test_a_failed_load_gives_the_reason_without_the_path(traced, tmp_path):
    folder = tmp_path / "what nobody may see"
    folder.mkdir()
    traced.instrument()
    with pytest.raises(AceStepError, match="nobody may see"):
        checkpoints.load_models(ModelSelection(dit=str(folder), lm=None, device="cpu"))
    (load,) = traced.named("acestep.model.load")
    (event,) = load.events
    assert load.status.status_code is StatusCode.ERROR
    assert load.attributes[semconv.ERROR_TYPE] in event.attributes["exception.type"]
    assert str(folder) not in str(event.attributes)


@pytest.mark.parametrize("relative", [False, True])
def test_nor_does_it_name_the_folder_of_an_adapter(traced, tmp_path, monkeypatch, relative):
    monkeypatch.chdir(tmp_path)
    folder = Path("what nobody may see") if relative else tmp_path / "what nobody may see"
    traced.instrument()
    with pytest.raises(AceStepError, match="nobody may see"):
        checkpoints.load_models(
            ModelSelection(dit=TINY_DIT, lm=None, device="cpu", adapters=(Adapter(folder / "lora"),))
        )
    (load,) = traced.named("acestep.model.load")
    assert load.status.status_code is StatusCode.ERROR
    assert "nobody may see" not in load.to_json()


def test_the_request_joins_the_caller_s_trace(traced, tiny_models):
    traced.instrument()
    with traced.tracer_provider.get_tracer("service").start_as_current_span("POST /songs") as caller:
        generate_music(tiny_models, SONG)
        inside = trace.get_current_span()
    assert inside is caller
    (root,) = traced.named("generate_music")
    assert root.parent.span_id == caller.get_span_context().span_id
    assert len({span.context.trace_id for span in traced.spans}) == 1


def test_two_threads_keep_their_trees_apart(traced, tiny_models):
    traced.instrument()
    request = replace(SONG, inference_steps=2)
    threads = [threading.Thread(target=generate_music, args=(tiny_models, request)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    by_trace = {}
    for span in traced.spans:
        by_trace.setdefault(span.context.trace_id, []).append(span)
    assert len(by_trace) == 2
    shapes = [tree(spans) for spans in by_trace.values()]
    assert shapes[0] == shapes[1]


def test_a_traced_run_stays_small(traced, tiny_models):
    traced.instrument(detail="token")
    generate_music(tiny_models, replace(SONG, duration=120, inference_steps=16))
    assert len(traced.spans) < 2_000


def test_importing_the_layer_imports_neither_torch_nor_the_sdk():
    code = (
        "import sys, acestep_otel.instrumentor as i; i.AceStepInstrumentor().instrument();"
        "print(sorted(m for m in ('torch', 'acestep', 'opentelemetry.sdk', 'numpy') if m in sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_it_is_found_by_zero_code_instrumentation():
    from importlib.metadata import entry_points

    (entry,) = [e for e in entry_points(group="opentelemetry_instrumentor") if e.name == "acestep"]
    assert entry.load() is AceStepInstrumentor
