"""The released package ``ace-step``, as a structural double in both of its layouts: spans by name.

The double has the package's own name, so it runs in a process of its own.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from acestep_otel import semconv

ROOT = Path(__file__).parents[2]
DOUBLE = Path(__file__).with_name("official_package_double")
PHASES = ["acestep.lm.cot", "acestep.lm.codes"]
RENDERED = [
    "acestep.condition",
    ("acestep.dit", ["acestep.dit.step"] * 4),
    ("acestep.vae.decode", ["acestep.vae.tile"] * 3),
]
SET_UP = """
import json, sys, tempfile, threading
from tests.tracing import Traced, tree
from acestep_otel.instrumentor import AceStepInstrumentor
traced = Traced()
traced.instrument()
from acestep.handler import AceStepHandler
from acestep.inference import *
from acestep.llm_inference import LLMHandler
dit, lm = AceStepHandler(), LLMHandler()
params = GenerationParams("a caption nobody may see", "words nobody may see", inference_steps=4)
"""
REPORT = """
print(json.dumps({
    "tree": tree(traced.spans),
    "spans": [json.loads(span.to_json()) for span in traced.spans],
    "loaded": sorted({"torch", "numpy"} & set(sys.modules)),
}))
"""


@pytest.fixture(params=["single", "mixins"])
def run(request, tmp_path):
    """Runs a program with the double on its path and returns what it recorded."""
    package = tmp_path / "double"
    shutil.copytree(DOUBLE, package)
    shutil.move(package / "handlers" / f"{request.param}.py", package / "acestep" / "handler.py")

    def run(program):
        path = os.pathsep.join([str(package), str(ROOT)])
        done = subprocess.run(
            [sys.executable, "-c", SET_UP + program + REPORT],
            env={**os.environ, "PYTHONPATH": path},
            cwd=package,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        recorded = json.loads(done.stdout.splitlines()[-1])
        recorded["tree"] = as_tuples(recorded["tree"])
        recorded["log"] = done.stderr
        return recorded

    return run


def as_tuples(tree):
    return [node if isinstance(node, str) else (node[0], as_tuples(node[1])) for node in tree]


def named(recorded, name):
    return [span for span in recorded["spans"] if span["name"] == name]


def attributes(recorded, name):
    (span,) = named(recorded, name)
    return span["attributes"]


@pytest.mark.parametrize("songs", [1, 2])
def test_songs_have_their_stages_phases_steps_and_tiles_in_one_trace(run, songs):
    recorded = run(
        "lm.initialize('checkpoints', lm_model_path='/home/someone/acestep-5Hz-lm-1.7B')\n"
        f"generate_music(dit, lm, params, GenerationConfig({songs}), save_dir=tempfile.mkdtemp())"
    )
    rendered = [*RENDERED, *["acestep.audio.save"] * songs]
    assert recorded["tree"] == ["acestep.model.load", ("generate_music", [("acestep.lm", PHASES), *rendered])]
    root = attributes(recorded, "generate_music")
    assert root[semconv.REQUEST_MODEL] == "acestep-v15-turbo"
    assert root[semconv.AUDIO_DURATION] == 10.0
    assert root[semconv.BATCH_SIZE] == songs
    assert root[semconv.DIT_STEPS] == 4
    assert root[semconv.THINKING] is True
    codes = attributes(recorded, "acestep.lm.codes")
    assert codes[semconv.REQUEST_MODEL] == "acestep-5Hz-lm-1.7B"
    assert codes[semconv.LM_TIME_TO_FIRST_TOKEN] > 0
    assert codes[semconv.LM_CONSTRAINED_DECODING_DURATION] > 0
    counted = {
        semconv.USAGE_INPUT_TOKENS: 30,
        semconv.USAGE_OUTPUT_TOKENS: 5,
        semconv.LM_SAMPLED_TOKENS: 5,
        semconv.LM_UNCONDITIONAL_TOKENS: 15,
        semconv.LM_FORWARDS: 5,
    }
    assert codes.items() >= counted.items()
    assert attributes(recorded, "acestep.lm").items() >= {name: 2 * count for name, count in counted.items()}.items()
    # Its share was not calibrated, so what guidance cost is not known, and not zero.
    assert semconv.LM_CFG_DURATION not in codes
    assert "nobody may see" not in json.dumps(recorded["spans"])
    assert "/home/someone" not in json.dumps(recorded["spans"])
    for span in recorded["spans"]:
        for name, value in span["attributes"].items():
            # A list in JSON is what the SDK holds as a tuple.
            kind = tuple if isinstance(value, list) else type(value)
            assert kind is semconv.ATTRIBUTES[name].type, (span["name"], name, value)
    assert recorded["loaded"] == []
    assert "will not be traced" not in recorded["log"]


@pytest.mark.parametrize(
    ("handler", "used"),
    [
        ("dit.use_lora = False", (None, None)),
        ("dit._active_loras, dit._lora_active_adapter = {'piano': 0.5, 'voice': 1.0}, 'voice'", ("voice", "1")),
        ("dit._active_loras, dit._lora_active_adapter = {'drums': 0.5}, None", ("drums", "0.5")),
        ("dit.lora_scale, dit.model.decoder.active_adapter = 0.25, 'default'", ("default", "0.25")),
        ("dit.lora_scale = None", (None, None)),
    ],
)
def test_the_adapter_in_use_is_on_the_request(run, handler, used):
    recorded = run(f"dit.use_lora = True\n{handler}\ngenerate_music(dit, lm, params, GenerationConfig(1))")
    root = attributes(recorded, "generate_music")
    assert (root.get(semconv.ADAPTER_NAMES), root.get(semconv.ADAPTER_SCALES)) == used


DIRECT = (
    "lm.understand_audio_from_codes('<|audio_code_1|>'); lm.create_sample_from_query('a wish')\n"
    "lm.format_sample_from_input('c', 'l')"
)


@pytest.mark.parametrize(
    "program", ["understand_music(lm, 'codes'); create_sample(lm, 'a wish'); format_sample(lm, 'c', 'l')", DIRECT]
)
def test_songs_in_words_have_their_roots_also_where_the_handler_is_called_directly(run, program):
    recorded = run(program)
    assert recorded["tree"] == [
        (verb, [("acestep.lm", ["acestep.lm.cot"])]) for verb in ("understand_music", "create_sample", "format_sample")
    ]


def test_the_handler_called_directly_has_a_root(run):
    recorded = run("dit.generate_music('a caption nobody may see', 'l', inference_steps=4, batch_size=2)")
    assert recorded["tree"] == [("generate_music", RENDERED)]
    root = attributes(recorded, "generate_music")
    assert root[semconv.BATCH_SIZE] == 2
    assert root[semconv.THINKING] is False
    assert root[semconv.CAPTION_LENGTH] == 24
    assert "nobody may see" not in json.dumps(recorded["spans"])


@pytest.mark.parametrize(
    ("change", "succeeds"),
    [
        ("params.caption = None", True),
        ("params.lyrics = None", True),
        ("params.duration = '10'", True),
        ("params.duration = 'long'", True),
        ("params.inference_steps = None", False),
        ("params = {'caption': 'a caption nobody may see'}", False),
        ("lm = None", True),
        ("dit = None", False),
        ("config.batch_size = None", True),
        ("config = None", False),
    ],
)
def test_a_request_is_opened_and_closed_whatever_it_was_called_with(run, change, succeeds):
    recorded = run(f"config = GenerationConfig()\n{change}\ngenerate_music(dit, lm, params, config)")
    assert [node if isinstance(node, str) else node[0] for node in recorded["tree"]] == ["generate_music"]
    (root,) = named(recorded, "generate_music")
    assert root["status"]["status_code"] == ("UNSET" if succeeds else "ERROR")
    assert "nobody may see" not in json.dumps(recorded["spans"])


def test_a_call_that_does_not_fit_the_function_is_a_failed_request(run):
    recorded = run("try: generate_music(dit)\nexcept TypeError: pass")
    assert attributes(recorded, "generate_music")[semconv.ERROR_TYPE] == "TypeError"


def test_thinking_is_what_ran(run):
    recorded = run(
        "generate_music(dit, None, params, GenerationConfig())\n"
        "params.task_type = 'cover'; generate_music(dit, lm, params, GenerationConfig())"
    )
    assert [span["attributes"][semconv.THINKING] for span in named(recorded, "generate_music")] == [False, False]


def test_a_source_is_encoded_inside_the_conditioning(run):
    recorded = run("params.task_type = 'cover'; generate_music(dit, lm, params, GenerationConfig(1))")
    ((_, stages),) = recorded["tree"]
    assert stages[0] == ("acestep.condition", ["acestep.vae.encode"])
    assert (
        attributes(recorded, "acestep.vae.encode").items()
        >= {
            semconv.LATENT_FRAMES: 250,
            semconv.VAE_TILES: 2,
        }.items()
    )


def test_a_step_of_heun_is_one_step(run):
    recorded = run("dit.sampler_mode = 'heun'; generate_music(dit, None, params, GenerationConfig(1))")
    assert len(named(recorded, "acestep.dit.step")) == 4
    assert attributes(recorded, "acestep.dit")[semconv.DIT_STEPS] == 4


@pytest.mark.parametrize(
    ("window", "steps"),
    [
        ({}, 4),
        ({"flow_edit_n_avg": 3}, 4),
        ({"flow_edit_n_min": 0.25, "flow_edit_n_max": 0.75, "flow_edit_n_avg": 2}, 3),
        ({"flow_edit_n_max": 0.0}, 4),
    ],
)
def test_a_step_of_a_flow_edit_is_one_step(run, window, steps):
    """It evaluates both texts, as often as noise is drawn; after its window there is one text alone."""
    more = {"flow_edit_morph": True, **window}
    recorded = run(
        f"dit.more = {more}; dit.sampler_mode = 'heun'; generate_music(dit, None, params, GenerationConfig(1))"
    )
    spans = named(recorded, "acestep.dit.step")
    assert [span["attributes"][semconv.DIT_STEP_INDEX] for span in spans] == list(range(steps))
    dit = attributes(recorded, "acestep.dit")
    assert dit[semconv.DIT_STEPS] == steps
    assert (dit[semconv.DIT_SAMPLER_MODE], dit[semconv.DIT_DCW]) == ("euler", False)


@pytest.mark.parametrize(
    ("fault", "kind", "failed"),
    [
        ("dit.model.decoder.fails = True", "ValueError", ["acestep.dit.step", "acestep.dit", "generate_music"]),
        ("dit.fails = True", "ValueError", ["acestep.condition", "generate_music"]),
        ("lm.fails = True", "MemoryError", ["acestep.lm.cot", "acestep.lm", "generate_music"]),
    ],
)
def test_a_failure_that_is_only_reported_marks_the_trace_with_its_cause(run, fault, kind, failed):
    recorded = run(f"{fault}; generate_music(dit, lm, params, GenerationConfig())")
    errors = [span for span in recorded["spans"] if span["status"]["status_code"] == "ERROR"]
    assert sorted(span["name"] for span in errors) == sorted(failed)
    for span in errors:
        assert span["attributes"][semconv.ERROR_TYPE] == kind
        (event,) = span["events"]
        # An exception passed through the stage; the request, and the planner, only say that they failed.
        assert event["attributes"]["exception.escaped"] == str(span["name"] not in ("generate_music", "acestep.lm"))
        assert event["attributes"]["exception.message"]
    assert "nobody may see" not in json.dumps(recorded["spans"])


def test_a_model_that_does_not_load_is_a_failed_load(run):
    recorded = run(
        "AceStepInstrumentor().uninstrument()\n"
        "LLMHandler.initialize = lambda self, checkpoint_dir, lm_model_path: ('not found', False)\n"
        "traced.instrument(); lm.initialize('checkpoints', 'acestep-5Hz-lm-4B')"
    )
    (load,) = named(recorded, "acestep.model.load")
    assert load["attributes"][semconv.ERROR_TYPE] == "LoadFailed"
    assert load["attributes"][semconv.MODEL_NAME] == "acestep-5Hz-lm-4B"


def test_names_imported_before_instrumentation_are_traced_and_restored(run):
    recorded = run(
        "AceStepInstrumentor().uninstrument(); original = generate_music\n"
        "assert type(original).__name__ == 'function'\n"
        "traced.instrument(); generate_music(dit, lm, params, GenerationConfig(1))\n"
        "AceStepInstrumentor().uninstrument(); assert generate_music is original"
    )
    assert recorded["tree"] == [("generate_music", [("acestep.lm", PHASES), *RENDERED])]


def test_a_missing_name_turns_off_one_span_and_says_which(run):
    recorded = run(
        "AceStepInstrumentor().uninstrument(); del LLMHandler._run_pt\n"
        "traced.instrument(); generate_music(dit, lm, params, GenerationConfig(1))"
    )
    assert recorded["tree"] == [("generate_music", [("acestep.lm", PHASES), *RENDERED])]
    missing = "no acestep.llm_inference.LLMHandler._run_pt in this version: it will not be traced"
    assert f"{missing} (acestep.lm.cot, acestep.lm.codes)" in recorded["log"]


def test_a_gap_that_is_met_at_run_time_is_said_once_by_name(run):
    recorded = run("for _ in range(2): dit.service_generate(['c'], ['l']); lm.generate_with_stop_condition('c', 'l')")
    assert recorded["tree"] == []
    assert recorded["log"].count("acestep.condition and acestep.dit will be missing") == 1
    assert recorded["log"].count("acestep.lm will be missing") == 1


def test_objects_and_classes_are_restored(run):
    recorded = run(
        "import copy, acestep.inference, acestep.handler\n"
        "generate_music(dit, lm, params, GenerationConfig())\n"
        "copy.deepcopy(dit.model.decoder); copy.deepcopy(dit.vae)\n"
        "assert 'forward' not in vars(dit.model.decoder) and 'decode' not in vars(dit.vae)\n"
        "AceStepInstrumentor().uninstrument()\n"
        "assert type(acestep.inference.generate_music).__name__ == 'function'\n"
        "for owner in (AceStepHandler, LLMHandler):\n"
        "    assert not any('Wrapper' in type(value).__name__ for value in vars(owner).values())\n"
        "dit.generate_music('c', 'l')"
    )
    assert len(named(recorded, "generate_music")) == 1


def test_two_requests_at_once_on_one_handler_have_whole_traces_of_their_own(run):
    recorded = run(
        "AceStepInstrumentor().uninstrument(); barrier = threading.Barrier(2)\n"
        "original = type(dit).service_generate\n"
        "def both(self, *args, **kwargs): barrier.wait(10); return original(self, *args, **kwargs)\n"
        "both.__signature__ = __import__('inspect').signature(original)\n"
        "type(dit).service_generate = both; traced.instrument()\n"
        "def song(songs): generate_music(dit, lm, params, GenerationConfig(songs))\n"
        "threads = [threading.Thread(target=song, args=[songs]) for songs in (1, 2)]\n"
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]"
    )
    assert recorded["tree"] == [("generate_music", [("acestep.lm", PHASES), *RENDERED])] * 2
    roots = {span["context"]["trace_id"]: span["attributes"] for span in named(recorded, "generate_music")}
    for loop in named(recorded, "acestep.dit"):
        assert loop["attributes"][semconv.BATCH_SIZE] == roots[loop["context"]["trace_id"]][semconv.BATCH_SIZE]
    assert "will be missing" not in recorded["log"]
