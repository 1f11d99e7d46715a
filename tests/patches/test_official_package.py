"""The released package ``ace-step``, as a structural double in both of its layouts: spans by name, on what is there.

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
import json, sys
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


def test_a_song_has_its_stages_phases_steps_and_tiles_in_one_trace(run):
    recorded = run("generate_music(dit, lm, params, GenerationConfig(batch_size=1))")
    assert recorded["tree"] == [("generate_music", [("acestep.lm", PHASES), *RENDERED])]
    (root,) = named(recorded, "generate_music")
    assert root["attributes"][semconv.REQUEST_MODEL] == "acestep-v15-turbo"
    assert root["attributes"][semconv.AUDIO_DURATION] == 10.0
    (codes,) = named(recorded, "acestep.lm.codes")
    assert codes["attributes"][semconv.REQUEST_MODEL] == "acestep-5Hz-lm-1.7B"
    assert codes["attributes"][semconv.LM_TIME_TO_FIRST_TOKEN] > 0
    assert semconv.LM_TOKENS_PER_SECOND not in codes["attributes"]
    assert "nobody may see" not in json.dumps(recorded["spans"])
    for span in recorded["spans"]:
        for name, value in span["attributes"].items():
            assert type(value) is semconv.ATTRIBUTES[name].type, (span["name"], name, value)
    assert recorded["loaded"] == []
    assert "will not be traced" not in recorded["log"]


def test_songs_in_words_have_their_roots(run):
    recorded = run("understand_music(lm, 'codes'); create_sample(lm, 'a wish'); format_sample(lm, 'c', 'l')")
    assert recorded["tree"] == [
        (verb, ["acestep.lm"]) for verb in ("understand_music", "create_sample", "format_sample")
    ]


def test_a_failure_that_is_only_reported_marks_the_trace(run):
    recorded = run("dit.model.decoder.fails = True; generate_music(dit, lm, params, GenerationConfig())")
    (root,) = named(recorded, "generate_music")
    assert root["attributes"][semconv.ERROR_TYPE] == "GenerationFailed"
    assert root["status"]["status_code"] == "ERROR"
    assert "nobody may see" not in json.dumps(recorded["spans"])


def test_a_missing_name_turns_off_one_span(run):
    recorded = run(
        "AceStepInstrumentor().uninstrument(); del LLMHandler.generate_from_formatted_prompt\n"
        "LLMHandler.generate_with_stop_condition = lambda *a, **k: None\n"
        "traced.instrument(); import acestep.inference\n"
        "acestep.inference.generate_music(dit, lm, params, GenerationConfig())"
    )
    assert recorded["tree"] == [("generate_music", ["acestep.lm", *RENDERED])]
    assert "no acestep.llm_inference.LLMHandler.generate_from_formatted_prompt" in recorded["log"]


def test_objects_and_classes_are_left_as_they_were(run):
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


def test_two_requests_at_once_never_share_a_trace(run):
    recorded = run(
        "import threading\n"
        "barrier = threading.Barrier(2)\n"
        "original = type(dit.vae).decode\n"
        "type(dit.vae).decode = lambda self, latents: (barrier.wait(10), original(self, latents))[1]\n"
        "def song(): generate_music(dit, lm, params, GenerationConfig())\n"
        "threads = [threading.Thread(target=song) for _ in range(2)]\n"
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]"
    )
    assert len(recorded["tree"]) == 2
    for root, children in recorded["tree"]:
        assert root == "generate_music"
        assert children.count(("acestep.lm", PHASES)) == 1
        assert sum(child[0] == "acestep.dit" for child in children) <= 1
        assert children.count(RENDERED[-1]) == 1
