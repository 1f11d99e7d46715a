"""The released package itself under the layer: every span and attribute, and the same audio as without it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from acestep_otel import semconv

Spans = list[dict[str, Any]]

SONGS = """
instrument()
dit, lm = load()
scenario("load")
generate_music(dit, lm, params(thinking=True), GenerationConfig(batch_size=2, use_random_seed=False, seeds=[1, 2]),
               save_dir=tempfile.mkdtemp())
scenario("two songs")
for name, changed in {
    "no caption": {"caption": None}, "no lyrics": {"lyrics": None}, "duration as text": {"duration": "10"},
}.items():
    generate_music(dit, lm, params(**changed), one())
    scenario(name)
generate_music(dit, lm, {"caption": "a caption nobody may see"}, one())
scenario("params as a dict")
generate_music(dit, None, params(thinking=True), one())
scenario("no language model")
generate_music(dit, lm, params(), GenerationConfig(batch_size=None))
scenario("no batch size")
dit.generate_music("a caption nobody may see", lyrics="words nobody may see", audio_duration=10.0, batch_size=1)
scenario("the handler alone")
lm.create_sample_from_query("a query nobody may see")
scenario("a query alone")
understand_music(lm, "<|audio_code_5|><|audio_code_6|>")
create_sample(lm, "a query nobody may see")
format_sample(lm, "a caption nobody may see", "words nobody may see")
scenario("in words")
source = Path("source.wav")
import soundfile
soundfile.write(source, torch.randn(48_000 * 10, 2).numpy() * 0.1, 48_000)
generate_music(dit, lm, params(task_type="cover", src_audio=str(source.resolve()), thinking=True), one())
scenario("cover")
facts["reads"] = dit.process_src_audio(str(source)) is not None
facts["named"] = sorted(name for owner in (AceStepHandler, LLMHandler) for name, value in vars(owner).items()
                        if "Wrapper" in type(value).__name__)
instrumentor.uninstrument()
facts["left"] = sorted(name for owner in (AceStepHandler, LLMHandler) for name, value in vars(owner).items()
                       if "Wrapper" in type(value).__name__)
facts["forward"] = "forward" in vars(dit.model.decoder) or "decode" in vars(dit.vae) or "forward" in vars(lm.llm)
facts["function"] = type(generate_music).__name__
"""


@pytest.fixture(scope="module")
def songs(run):
    return run(SONGS)


def named(spans: Spans, name: str) -> Spans:
    return [span for span in spans if span["name"] == name]


def children(spans: Spans, parent: dict[str, Any]) -> list[str]:
    """Names of a span's children, in the order in which they began."""
    below = [span for span in spans if span["parent_id"] == parent["context"]["span_id"]]
    return [span["name"] for span in sorted(below, key=lambda span: span["start_time"])]


def attributes(spans: Spans, name: str) -> dict[str, Any]:
    (span,) = named(spans, name)
    return span["attributes"]


def test_loading_names_both_models(songs):
    loads = named(songs["scenarios"]["load"], "acestep.model.load")
    assert [(load["attributes"][semconv.MODEL_NAME], load["attributes"][semconv.MODEL_ROLE]) for load in loads] == [
        ("acestep-v15-turbo", "renderer"),
        ("acestep-5Hz-lm-1.7B", "planner"),
    ]


def test_two_songs_with_thinking_are_whole(songs):
    spans = songs["scenarios"]["two songs"]
    (root,) = named(spans, "generate_music")
    saved = ["acestep.audio.save"] * 2
    assert children(spans, root) == ["acestep.lm", "acestep.condition", "acestep.dit", "acestep.vae.decode", *saved]
    (lm,) = named(spans, "acestep.lm")
    assert children(spans, lm) == ["acestep.lm.codes"]
    assert len(named(spans, "acestep.dit.step")) == 8
    assert 1 <= len(named(spans, "acestep.vae.tile")) <= 2
    counted = root["attributes"]
    assert (counted[semconv.BATCH_SIZE], counted[semconv.AUDIO_DURATION]) == (2, pytest.approx(10, abs=0.5))
    assert counted[semconv.DIT_STEPS] == 8
    assert counted[semconv.THINKING] is True


def test_the_codes_of_a_batch_are_timed_counted_and_named(songs):
    codes = attributes(songs["scenarios"]["two songs"], "acestep.lm.codes")
    assert codes[semconv.REQUEST_MODEL] == "acestep-5Hz-lm-1.7B"
    # Five codes per second and the end, or fewer: each song is written by itself.
    assert 40 <= codes[semconv.USAGE_OUTPUT_TOKENS] <= 2 * 51
    assert codes[semconv.LM_FORWARDS] == codes[semconv.USAGE_OUTPUT_TOKENS]
    assert codes[semconv.USAGE_INPUT_TOKENS] > 0
    assert codes[semconv.LM_UNCONDITIONAL_TOKENS] > codes[semconv.USAGE_OUTPUT_TOKENS]
    for duration in (semconv.LM_PREFILL_DURATION, semconv.LM_DECODE_DURATION, semconv.LM_CONSTRAINED_DECODING_DURATION):
        assert codes[duration] > 0
    assert semconv.LM_CFG_DURATION not in codes
    sampling = attributes(songs["scenarios"]["two songs"], "acestep.lm")
    assert sampling[semconv.REQUEST_TEMPERATURE] == 0.85
    assert sampling[semconv.LM_GUIDANCE_SCALE] == 2.0


def test_the_diffusion_has_its_settings_and_each_step_its_time(songs):
    spans = songs["scenarios"]["two songs"]
    loop = attributes(spans, "acestep.dit")
    assert loop.items() >= {semconv.DIT_INFER_METHOD: "ode", semconv.DIT_SAMPLER_MODE: "euler"}.items()
    assert type(loop[semconv.DIT_DCW]) is bool
    frames = loop[semconv.LATENT_FRAMES]
    assert loop.items() >= {semconv.DIT_STEPS: 8, semconv.BATCH_SIZE: 2, semconv.DIT_GUIDANCE_SCALE: 1.0}.items()
    steps = [span["attributes"] for span in named(spans, "acestep.dit.step")]
    times = [step[semconv.DIT_STEP_TIMESTEP] for step in steps]
    assert times == sorted(times, reverse=True)
    assert times[0] == 1.0
    assert [step[semconv.DIT_STEP_INDEX] for step in steps] == list(range(8))
    assert not any(step[semconv.DIT_STEP_GUIDED] for step in steps)
    assert {tile["attributes"][semconv.VAE_TILE_FRAMES] for tile in named(spans, "acestep.vae.tile")} == {frames}


@pytest.mark.parametrize(
    ("name", "succeeds"),
    [
        ("no caption", None),
        ("no lyrics", None),
        ("duration as text", None),
        ("params as a dict", False),
        ("no language model", None),
        ("no batch size", True),
    ],
)
def test_a_request_is_one_trace_whatever_it_was_called_with(songs, name, succeeds):
    spans = songs["scenarios"][name]
    roots = [span for span in spans if span["parent_id"] is None]
    assert [root["name"] for root in roots] == ["generate_music"]
    assert len({span["context"]["trace_id"] for span in spans}) == 1
    if succeeds is not None:
        assert (roots[0]["status"]["status_code"] == "UNSET") is succeeds


def test_thinking_without_a_language_model_is_not_thinking(songs):
    for name in ("no language model", "cover"):
        assert attributes(songs["scenarios"][name], "generate_music")[semconv.THINKING] is False


def test_handlers_that_are_called_directly_have_roots(songs):
    scenarios = songs["scenarios"]
    (root,) = named(scenarios["the handler alone"], "generate_music")
    assert children(scenarios["the handler alone"], root)[:2] == ["acestep.condition", "acestep.dit"]
    assert [span["name"] for span in scenarios["a query alone"] if span["parent_id"] is None] == ["create_sample"]


def test_songs_in_words_show_their_generation(songs):
    spans = songs["scenarios"]["in words"]
    roots = [span for span in spans if span["parent_id"] is None]
    assert [root["name"] for root in roots] == ["understand_music", "create_sample", "format_sample"]
    phases = named(spans, "acestep.lm.cot")
    assert len(phases) == 3
    for phase in phases:
        assert phase["attributes"][semconv.USAGE_OUTPUT_TOKENS] > 0
        assert phase["attributes"][semconv.LM_CFG_DURATION] == 0.0


def test_a_cover_s_source_is_encoded_inside_the_conditioning(songs):
    if not songs["reads"]:
        pytest.skip("this version reads files by torchcodec, which needs FFmpeg's libraries")
    spans = songs["scenarios"]["cover"]
    (condition,) = named(spans, "acestep.condition")
    assert "acestep.vae.encode" in children(spans, condition)


def test_nothing_that_the_user_wrote_is_on_a_span(songs):
    assert "nobody may see" not in json.dumps(songs["scenarios"])


def test_every_attribute_is_of_the_conventions(songs):
    for spans in songs["scenarios"].values():
        for span in spans:
            for name, value in span["attributes"].items():
                # A list in JSON is what the SDK holds as a tuple.
                kind = tuple if isinstance(value, list) else type(value)
                assert kind is semconv.ATTRIBUTES[name].type, (span["name"], name, value)


def test_uninstrument_removes_everything(songs):
    assert songs["named"]
    assert (songs["left"], songs["forward"], songs["function"]) == ([], False, "function")


def test_nothing_that_should_be_there_is_missing_without_a_word(songs):
    assert "will be missing" not in songs["log"]


def test_audio_is_bit_identical_with_and_without_the_layer(run):
    recorded = run(
        """
dit, lm = load()
def song():
    torch.manual_seed(1)
    result = generate_music(dit, lm, params(thinking=True), one())
    assert result.success, result.error
    return result.audios[0]["tensor"]
before = song()
instrument()
traced = song()
scenario("traced")
facts["equal"] = torch.equal(before, traced)
"""
    )
    assert recorded["equal"] is True
    assert named(recorded["scenarios"]["traced"], "acestep.lm.codes")


def test_an_adapter_is_on_the_request_that_it_is_used_for(run):
    """Written by PEFT as the package's training does; the layer sees its transformer's calls as before."""
    recorded = run(
        """
import copy
from peft import LoraConfig, get_peft_model
instrument()
dit, lm = load()
layers = [name for name, layer in dit.model.decoder.named_modules() if isinstance(layer, torch.nn.Linear)]
adapter = get_peft_model(copy.deepcopy(dit.model.decoder), LoraConfig(r=2, target_modules=layers[:4]))
adapter.save_pretrained("piano")
facts["loaded"] = dit.load_lora("piano")
# The newest versions take a name as well.
adapters = list(getattr(dit, "_active_loras", {}) or ["default"])
dit.set_lora_scale(*([adapters[0]] if "adapter_name" in str(inspect.signature(dit.set_lora_scale)) else []), 0.5)
facts["name"] = adapters[0]
exporter.clear()
generate_music(dit, lm, params(), one())
scenario("used")
dit.set_use_lora(False)
generate_music(dit, lm, params(), one())
scenario("switched off")
"""
    )
    used = attributes(recorded["scenarios"]["used"], "generate_music")
    assert (used[semconv.ADAPTER_NAMES], used[semconv.ADAPTER_SCALES]) == (recorded["name"], "0.5"), recorded["loaded"]
    assert len(named(recorded["scenarios"]["used"], "acestep.dit.step")) == 8
    assert semconv.ADAPTER_NAMES not in attributes(recorded["scenarios"]["switched off"], "generate_music")


def test_a_flow_edit_has_as_many_steps_as_it_was_asked_for(run):
    recorded = run(
        """
import soundfile
instrument()
facts["edits"] = "flow_edit_morph" in inspect.signature(GenerationParams).parameters
if facts["edits"]:
    dit, lm = load("base")
    source = Path("edited.wav")
    soundfile.write(source, torch.randn(48_000 * 10, 2).numpy() * 0.1, 48_000)
    facts["reads"] = dit.process_src_audio(str(source)) is not None
    exporter.clear()
    edit = {"flow_edit_morph": True, "flow_edit_source_caption": "words nobody may see", "flow_edit_n_avg": 2}
    generate_music(dit, lm, params(src_audio=str(source.resolve()), flow_edit_n_max=0.5, guidance_scale=3.0, **edit),
                   one())
    scenario("edit")
"""
    )
    if not recorded["edits"]:
        pytest.skip("this version has no flow edit")
    if not recorded["reads"]:
        pytest.skip("this version reads files by torchcodec, which needs FFmpeg's libraries")
    spans = recorded["scenarios"]["edit"]
    assert len(named(spans, "acestep.dit.step")) == attributes(spans, "acestep.dit")[semconv.DIT_STEPS] == 8
    times = [span["attributes"][semconv.DIT_STEP_TIMESTEP] for span in named(spans, "acestep.dit.step")]
    assert times == sorted(set(times), reverse=True)
    assert "nobody may see" not in json.dumps(spans)


def test_failures_keep_their_cause(run):
    recorded = run(
        """
instrument()
dit, lm = load()
exporter.clear()
def refuse(*args, **kwargs): raise ValueError("refused for a caption nobody may see")
original = dit.model.prepare_condition
dit.model.prepare_condition = refuse
generate_music(dit, lm, params(), one())
scenario("conditioning")
dit.model.prepare_condition = original
lm.llm.forward = refuse
generate_music(dit, lm, params(thinking=True), one())
scenario("language model")
"""
    )
    for name, stages in {
        "conditioning": ["acestep.condition", "generate_music"],
        "language model": ["acestep.lm", "acestep.lm.codes", "generate_music"],
    }.items():
        spans = recorded["scenarios"][name]
        failed = [span for span in spans if span["status"]["status_code"] == "ERROR"]
        assert sorted(span["name"] for span in failed) == stages
        assert {span["attributes"][semconv.ERROR_TYPE] for span in failed} == {"ValueError"}
        for span in failed:
            escaped = span["events"][0]["attributes"]["exception.escaped"]
            assert escaped == str(span["name"] not in ("generate_music", "acestep.lm"))
    assert "nobody may see" not in json.dumps(recorded["scenarios"])


def test_two_requests_at_once_on_one_handler_are_two_whole_traces(run):
    recorded = run(
        """
import threading
instrument()
dit, lm = load()
exporter.clear()
class OneAtATime:
    "Fast tokenizers refuse a second thread, with and without the layer."
    def __init__(self, tokenizer): self.tokenizer, self.lock = tokenizer, threading.Lock()
    def __call__(self, *args, **kwargs):
        with self.lock: return self.tokenizer(*args, **kwargs)
    def __getattr__(self, name): return getattr(self.tokenizer, name)
dit.text_tokenizer = OneAtATime(dit.text_tokenizer)
barrier, facts["errors"] = threading.Barrier(2), []
def song():
    barrier.wait(60)
    result = generate_music(dit, lm, params(), one())
    facts["errors"] += [result.error] if not result.success else []
threads = [threading.Thread(target=song) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
scenario("both")
"""
    )
    assert recorded["errors"] == []
    spans = recorded["scenarios"]["both"]
    traces = {span["context"]["trace_id"] for span in spans}
    assert len(traces) == 2
    for trace in traces:
        own = [span for span in spans if span["context"]["trace_id"] == trace]
        (root,) = named(own, "generate_music")
        assert children(own, root) == ["acestep.condition", "acestep.dit", "acestep.vae.decode"]
        assert len(named(own, "acestep.dit.step")) == 8
    assert "will be missing" not in recorded["log"]
