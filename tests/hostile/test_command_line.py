"""At least 400 generated inputs over flags, variables, documents, recordings and checkpoints.

Each ends in one line with the right exit code, within a limit of time and memory, and costs no file. In this process,
because that is the same door; what only a whole process shows (pipes, signals, a full disk) is tested elsewhere.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep_otel.profiler import cli
from acestep_otel.sdk import variables
from tests.hostile import door
from tests.hostile.door import bounded_memory, call, settable

GOLDEN = Path(__file__).parents[1] / "golden" / "checkpoint" / "checkpoints"
REFUSED = ("--example", "there-is-no-such-example.json")
"""Makes a call end before it runs anything, whatever the input is: in exit code 2."""

NUMBERS = st.sampled_from(
    ["nan", "inf", "-inf", "NaN", "1e400", "-1e400", "-1", "0", "-0", "1e-400", "9" * 6_000, "", " ", "٣", "1_0", "0x1",
     "1e3", "--", "½", "1,5", "10s", "true", "None"]
) | st.floats().map(repr) | st.integers(-(10**40), 10**40).map(str)  # fmt: skip
ODD = [
    "\udcff", "\ud800", "x" * 300, "/" * 5_000, "../" * 50, "~", "$HOME", "%s%n", "\u202e", "\x1b[31m", "a\nb", "'",
    '"',
]  # fmt: skip
TEXTS = st.text(st.characters(exclude_characters="\0"), max_size=60) | st.sampled_from(ODD)
VALUES = (NUMBERS | TEXTS).filter(settable)
HOSTILE = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

FLAGS = sorted(
    option
    for parameter in cli.command.params
    for option in parameter.opts
    if option.startswith("--") and option not in ("--help", "--version", "--example")
)


@pytest.fixture(scope="module", autouse=True)
def somewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("hostile")
    before = Path.cwd()
    os.chdir(folder)
    with bounded_memory():
        yield folder
    os.chdir(before)


@pytest.mark.timeout(600)
@HOSTILE
@given(st.sampled_from(FLAGS), NUMBERS | TEXTS)
def test_flags(flag: str, value: str) -> None:
    assert call("--tiny", flag, value, *REFUSED).code == 2


@pytest.mark.timeout(600)
@settings(HOSTILE, max_examples=250)
@given(st.sampled_from(sorted(variables._RULES)), VALUES)
def test_variables(name: str, value: str) -> None:
    wrong = [fault.name for fault in variables.wrong_variables({name: value})]
    ending = call("--tiny", *REFUSED, environment={name: value})
    assert ending.code == 2
    assert (f"error: {name}" in ending.err) == (wrong != [])


@pytest.mark.timeout(600)
@HOSTILE
@given(
    st.sampled_from(["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_METRICS_EXPORTER"]),
    TEXTS.filter(settable),
    st.sampled_from(["", "http://", "https://[", "http://user:PLANTED@", "file:///"]),
)
def test_endpoints(name: str, value: str, prefix: str) -> None:
    """No message contains a password."""
    # Without anything to listen there, a legal address is a failure of its own.
    ending = call("--tiny", *REFUSED, environment={name: f"{prefix}{value}", "OTEL_BSP_SCHEDULE_DELAY": "10"})
    assert ending.code == 2
    assert "PLANTED" not in ending.err


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=10)
    | st.sampled_from([10**80, "\ud800", "N/A", -0.0]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
EXAMPLE_KEYS = st.sampled_from(
    ["caption", "lyrics", "bpm", "duration", "keyscale", "language", "timesignature", "batch_size", "inference_steps",
     "seed", "prompt", "audio_duration", "description", "other"]
)  # fmt: skip


@pytest.mark.timeout(600)
@settings(HOSTILE, max_examples=150)
@given(st.dictionaries(EXAMPLE_KEYS, JSON, max_size=5).map(json.dumps) | st.binary(max_size=60))
def test_examples(content: str | bytes) -> None:
    path = Path("song.json")
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    # A cover without a recording is refused after the example was read and checked.
    assert call("--tiny", "--task-type", "cover", "--example", str(path)).code == 2


def result() -> dict[str, Any]:
    figures = {"wall_time": 1.0, "lm_time": 0.0, "dit_time": 0.5, "vae_time": 0.1}
    return {
        "schema_version": 1, "created": "2026-01-01T00:00:00+00:00", "mode": "benchmark",
        "environment": {
            "cpu": "a CPU", "cpu_cores": 2, "memory_bytes": None, "accelerators": [], "operating_system": "Linux",
            "python": "3.11", "packages": {"torch": "2.13"}, "git_revision": None,
        },
        "arguments": {}, "benchmark": {"tier": "unlimited", "gpu_memory": 0, "cells": 1, "clamped": []},
        "tier_test": None,
        "results": [
            {
                "config": {"duration": 30.0, "batch_size": 1, "thinking": False, "inference_steps": 8},
                "status": "ok", "error": None, **figures, "minimum": figures, "spread": figures,
                "runs": [{"status": "ok", "error": None, "effective_settings": None, "songs": [], "blueprint": None,
                          "measurement": None}],
            }
        ],
    }  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


@pytest.mark.timeout(600)
@settings(HOSTILE, max_examples=150)
@given(st.sampled_from([place for place in places(result()) if place]), JSON)
def test_results(place: tuple[Any, ...], value: Any) -> None:
    damaged = result()
    within: Any = damaged
    for key in place[:-1]:
        within = within[key]
    within[place[-1]] = value
    for name, document in (("good.json", result()), ("damaged.json", damaged)):
        Path(name).write_text(json.dumps(document), "utf-8")
    ending = call("compare", "good.json", "damaged.json", "--output", "ratios.json")
    # A legal other value may pass or not; nothing else is compared.
    assert ending.code == 2 or Path("ratios.json").exists()
    assert json.loads(Path("good.json").read_text("utf-8")) == result()


@pytest.mark.timeout(600)
@settings(HOSTILE, max_examples=60)
@given(
    st.sampled_from(["WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "W64"]),
    st.integers(0, 90),
    st.binary(max_size=12) | st.sampled_from([b"\0" * 8, b"\xff" * 8, struct.pack("<I", 2**31)]),
    st.integers(0, 4_000),
)
def test_recordings(format: str, position: int, noise: bytes, length: int) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((4_800, 2), "f4"), 48_000, format=format)
    content = bytearray(buffer.getvalue())
    content[position : position + len(noise)] = noise
    Path("song.bin").write_bytes(content[: max(length, position)])
    # The window ends before it begins, which is found after the recording's header was read.
    window = ("--repainting-start", "9", "--repainting-end", "1")
    assert call("--tiny", "--task-type", "repaint", "--src-audio", "song.bin", *window).code == 2


@pytest.fixture(scope="module")
def checkpoints(somewhere: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, somewhere / "checkpoints"))


CONFIG = json.loads((GOLDEN / "acestep-v15-turbo" / "config.json").read_text("utf-8"))


@pytest.mark.timeout(600)
@settings(HOSTILE, max_examples=60)
@given(st.sampled_from(sorted(CONFIG)), JSON | st.sampled_from([10**5, 10**9, 2**62, -1, 0, [1] * 10_000, 1e308]))
def test_configurations(checkpoints: Path, key: str, value: Any) -> None:
    folder = checkpoints / "acestep-v15-turbo"
    (folder / "config.json").write_text(json.dumps(CONFIG | {key: value}), "utf-8")
    shutil.rmtree("converted", ignore_errors=True)
    call("convert", "acestep-v15-turbo", "converted", "--checkpoint-dir", str(checkpoints))


@pytest.mark.timeout(600)
@settings(HOSTILE, max_examples=40)
@given(st.integers(0, 400), st.binary(max_size=16) | st.sampled_from([b"\xff" * 8, b"[" * 50]), st.integers(0, 3_000))
def test_headers_of_tensors(checkpoints: Path, position: int, noise: bytes, length: int) -> None:
    (checkpoints / "acestep-v15-turbo" / "config.json").write_text(json.dumps(CONFIG), "utf-8")
    source = GOLDEN / "acestep-v15-turbo" / "model.safetensors"
    content = bytearray(source.read_bytes())
    content[position : position + len(noise)] = noise
    if length < 1_500:
        content = content[:length]
    (checkpoints / "acestep-v15-turbo" / "model.safetensors").write_bytes(content)
    shutil.rmtree("converted", ignore_errors=True)
    call("convert", "acestep-v15-turbo", "converted", "--checkpoint-dir", str(checkpoints))


def test_there_were_at_least_four_hundred_of_them() -> None:
    assert door.count >= 400
