"""One request under ``torch.profiler``, on demand and within limits, while others go on as before."""

from __future__ import annotations

import gzip
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import context as otel_context

from acestep.checkpoints import Models
from acestep.inference import generate_music
from acestep.types import GenerationRequest
from acestep_otel import semconv
from acestep_otel.forced_sampling.profiling import HEADER, ProfilePropagator, is_profiled
from acestep_otel.forced_sampling.propagator import is_forced
from acestep_otel.instrumentor import AceStepInstrumentor
from acestep_otel.recording import kernel_profile
from acestep_otel.settings import PROFILE_FOLDER_VARIABLE, PROFILE_TOKEN_VARIABLE, PROFILE_URL_VARIABLE
from tests.tracing import Traced

SONG = GenerationRequest(caption="a song", duration=10, inference_steps=2, seeds=(1,))
SECRET = "only operators know"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "profiles"
    monkeypatch.setenv(PROFILE_FOLDER_VARIABLE, str(path))
    monkeypatch.setenv(PROFILE_TOKEN_VARIABLE, SECRET)
    return path


def asked(models: Models, header: str | None = SECRET) -> Any:
    carrier = {} if header is None else {HEADER: header}
    token = otel_context.attach(ProfilePropagator().extract(carrier))
    try:
        return generate_music(models, SONG)
    finally:
        otel_context.detach(token)


def outcomes(traced: Traced) -> dict[str, float]:
    return {point.attributes[semconv.OUTCOME]: point.value for point in traced.metric(semconv.PROFILES)}


def wait_for(traced: Traced, outcome: str) -> None:
    deadline = time.monotonic() + 30
    while outcomes(traced).get(outcome, 0) < 1:
        assert time.monotonic() < deadline, outcomes(traced)
        time.sleep(0.05)


def roots(traced: Traced) -> list[dict[str, Any]]:
    AceStepInstrumentor().flush()
    return [dict(span.attributes) for span in traced.spans if span.name == semconv.GENERATE_MUSIC]


def test_the_file_has_ranges_by_the_names_of_the_spans_and_is_linked_from_the_root(
    traced: Traced, tiny_models: Models, folder: Path
) -> None:
    traced.instrument()
    profiled = asked(tiny_models)
    wait_for(traced, "stored")
    (root,) = roots(traced)
    path = Path(root[semconv.PROFILE_FILE])
    assert path.parent == folder
    (span,) = [span for span in traced.spans if span.name == semconv.GENERATE_MUSIC]
    assert path.name == f"{span.context.trace_id:032x}.torch-trace.json.gz"
    with gzip.open(path, "rt") as stream:
        events = json.load(stream)["traceEvents"]
    ranges = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    for name in (semconv.GENERATE_MUSIC, semconv.CONDITION, semconv.DIT, semconv.VAE_DECODE, semconv.VAE_TILE):
        assert name in ranges
    assert ranges.count(semconv.DIT_STEP) == 2
    assert any(event.get("cat") == "cpu_op" for event in events)
    # The song is the same as without.
    assert (profiled.songs[0].audio == generate_music(tiny_models, SONG).songs[0].audio).all()


@pytest.mark.parametrize("header", [None, "guessed", "", SECRET + "x"])
def test_a_caller_without_the_secret_is_served_as_usual(
    traced: Traced, tiny_models: Models, folder: Path, header: str | None
) -> None:
    traced.instrument()
    asked(tiny_models, header)
    (root,) = roots(traced)
    assert semconv.PROFILE_FILE not in root
    assert not folder.exists()
    assert outcomes(traced) == {}


@pytest.mark.parametrize("missing", [PROFILE_TOKEN_VARIABLE, PROFILE_FOLDER_VARIABLE])
def test_without_folder_or_secret_there_is_no_profile(
    traced: Traced, tiny_models: Models, folder: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.delenv(missing)
    traced.instrument()
    asked(tiny_models)
    assert semconv.PROFILE_FILE not in roots(traced)[0]


def test_the_mark_forces_the_trace_and_is_not_propagated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROFILE_TOKEN_VARIABLE, SECRET)
    propagator = ProfilePropagator()
    context = propagator.extract({HEADER: SECRET})
    assert is_profiled(context)
    assert is_forced(context)
    carrier: dict[str, str] = {}
    propagator.inject(carrier, context)
    assert carrier == {}


def test_a_second_profile_is_refused_until_the_pause_is_over(
    traced: Traced, tiny_models: Models, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_profile, "PAUSE", 0.5)
    traced.instrument()
    asked(tiny_models)
    asked(tiny_models)
    wait_for(traced, "stored")
    assert outcomes(traced) == {"stored": 1, "refused": 1}
    time.sleep(0.6)
    asked(tiny_models)
    deadline = time.monotonic() + 30
    while outcomes(traced)["stored"] < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [semconv.PROFILE_FILE in root for root in roots(traced)] == [True, False, True]


def test_a_long_request_is_profiled_up_to_the_limit(
    traced: Traced, tiny_models: Models, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_profile, "LONGEST", 0.0)
    traced.instrument()
    asked(tiny_models)
    wait_for(traced, "stored")
    (path,) = folder.iterdir()
    with gzip.open(path, "rt") as stream:
        ranges = [event["name"] for event in json.load(stream)["traceEvents"] if event.get("cat") == "user_annotation"]
    assert semconv.CONDITION in ranges
    assert semconv.VAE_DECODE not in ranges


def test_the_oldest_files_go(
    traced: Traced, tiny_models: Models, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_profile, "KEPT", 2)
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.torch-trace.json.gz").write_bytes(b"")
    (folder / "notes.txt").write_text("mine")
    traced.instrument()
    asked(tiny_models)
    wait_for(traced, "stored")
    assert len(list(folder.glob("*.torch-trace.json.gz"))) == 2
    assert (folder / "notes.txt").exists()


def test_a_folder_that_cannot_be_written_costs_no_song(
    traced: Traced, tiny_models: Models, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write_text("a file in the way")
    traced.instrument()
    assert asked(tiny_models).songs
    wait_for(traced, "FileExistsError")
    assert "a profile could not be written" in caplog.text


def test_the_link_can_be_the_url_of_a_store(
    traced: Traced, tiny_models: Models, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PROFILE_URL_VARIABLE, "s3://bucket/profiles/")
    traced.instrument()
    asked(tiny_models)
    wait_for(traced, "stored")
    assert roots(traced)[0][semconv.PROFILE_FILE].startswith("s3://bucket/profiles/")


def test_a_request_beside_a_profiled_one_has_no_ranges(traced: Traced, tiny_models: Models, folder: Path) -> None:
    traced.instrument()
    plain = threading.Thread(target=lambda: generate_music(tiny_models, SONG))
    plain.start()
    asked(tiny_models)
    plain.join()
    wait_for(traced, "stored")
    (path,) = folder.iterdir()
    with gzip.open(path, "rt") as stream:
        ranges = [event["name"] for event in json.load(stream)["traceEvents"] if event.get("cat") == "user_annotation"]
    assert ranges.count(semconv.GENERATE_MUSIC) == 1
