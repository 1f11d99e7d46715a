"""A request past its deadline is looked at while it hangs."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import pytest

from acestep.checkpoints import Models
from acestep.inference import generate_music
from acestep.types import GenerationRequest, Progress
from acestep_otel import semconv
from acestep_otel.recording.trace_tree import Unrecorded
from acestep_otel.recording.watchdog import Watchdog, snapshot
from acestep_otel.settings import DEADLINE_VARIABLE, Settings
from tests.tracing import Traced

SONG = GenerationRequest(caption="a secret wish", duration=10, inference_steps=4)


def hang_in_the_third_step(released: threading.Event) -> Any:
    def progress(progress: Progress) -> None:
        if progress.stage == "dit" and progress.done == 3:
            released.wait(10)

    return progress


def test_the_snapshot_arrives_while_the_request_hangs(
    traced: Traced, tiny_models: Models, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(DEADLINE_VARIABLE, "1.0")
    traced.instrument()
    released = threading.Event()
    request = threading.Thread(
        target=lambda: generate_music(tiny_models, SONG, progress=hang_in_the_third_step(released))
    )
    request.start()
    with caplog.at_level(logging.WARNING):
        deadline = time.monotonic() + 8
        while not (hangs := [span for span in traced.spans if span.name == semconv.REQUEST_HANG]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert request.is_alive()
    (hang,) = hangs
    assert hang.attributes[semconv.HANG_STAGE] == "dit"
    assert hang.attributes[semconv.HANG_FINISHED] == 3
    assert hang.attributes[semconv.HANG_SECONDS] >= 1
    assert hang.attributes[semconv.HANG_DEVICE_BUSY] is False
    stack = hang.attributes[semconv.HANG_STACK]
    assert "test_watchdog.py" in stack
    assert "progress" in stack
    assert "renderer.py" in stack
    # Where, and not with what: values may be what the user wrote.
    assert "secret" not in stack
    assert "in dit" in caplog.text
    released.set()
    request.join()
    (counted,) = traced.metric(semconv.HANGS)
    assert counted.attributes[semconv.HANG_STAGE] == "dit"


def test_a_request_that_keeps_its_deadline_leaves_nothing(
    traced: Traced, tiny_models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEADLINE_VARIABLE, "30")
    traced.instrument()
    generate_music(tiny_models, SONG)
    assert [span for span in traced.spans if span.name == semconv.REQUEST_HANG] == []


def test_three_snapshots_are_made_each_after_twice_the_time() -> None:
    taken: list[float] = []
    watchdog = Watchdog(0.05)
    watchdog.begin(1, Unrecorded(), lambda attributes: taken.append(float(attributes[semconv.HANG_SECONDS])))
    time.sleep(1.2)
    watchdog.end(1)
    assert len(taken) == 3
    assert taken[0] == pytest.approx(0.05, abs=0.04)
    assert taken[1] >= 2.9 * taken[0]
    assert taken[2] >= 2.9 * taken[1]


def test_a_request_that_begins_beside_one_that_hangs_has_its_own_deadline() -> None:
    taken: list[str] = []
    watchdog = Watchdog(0.1)
    watchdog.begin(1, Unrecorded(), lambda _: taken.append("first"))
    time.sleep(0.15)
    watchdog.begin(2, Unrecorded(), lambda _: taken.append("second"))
    time.sleep(0.25)
    assert "second" in taken
    watchdog.end(1)
    watchdog.end(2)


def test_no_deadline_starts_no_thread() -> None:
    watchdog = Watchdog(0)
    watchdog.begin(1, Unrecorded(), lambda _: None)
    assert watchdog._thread is None


def test_a_request_that_was_sampled_out_shows_where_its_code_is() -> None:
    found = snapshot(Unrecorded(), threading.get_ident(), 3.0)
    assert found[semconv.HANG_STAGE] == "unknown"
    assert "test_watchdog.py" in str(found[semconv.HANG_STACK])


@pytest.mark.parametrize("word", ["soon", "-1", "inf", "nan"])
def test_a_deadline_that_is_no_time_is_an_error(word: str) -> None:
    with pytest.raises(ValueError, match=DEADLINE_VARIABLE):
        Settings.from_environment({DEADLINE_VARIABLE: word})
