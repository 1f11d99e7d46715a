"""Starting a child, reading its events, and ending it (R58)."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from acestep_otel.profiler.options import Options
from acestep_otel.profiler.tier_test import launcher
from acestep_otel.profiler.tier_test.launcher import Ending, child_environment, run_child
from acestep_otel.profiler.tier_test.plan import Plan, Trials
from acestep_otel.profiler.tier_test.protocol import Event, Finished, Spans, encode
from tests.profiler.tier_test.tier_rows import observation, trial

ROOT = Path(__file__).resolve().parents[3]


def job(memory: int = 8, **options: Any) -> Trials:
    (made,) = Plan.of(Options(mode="tier-test", tiers=(memory,), **options), 8).jobs
    return made


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_MODULE", "tests.profiler.tier_test.stand_in")


def run(*steps: list[Any], timeout: float = 30.0) -> tuple[Ending, list[Event]]:
    events: list[Event] = []
    environment = child_environment({**os.environ, "STAND_IN": json.dumps(steps)}, job())
    return run_child(job(), environment, timeout, events.append), events


def test_a_child_believes_in_its_card() -> None:
    """R58; the parent's own environment stays as it is."""
    inherited = {"MAX_CUDA_VRAM": "80", "PATH": "/bin"}
    assert child_environment(inherited, job(6))["MAX_CUDA_VRAM"] == "6"
    assert inherited == {"MAX_CUDA_VRAM": "80", "PATH": "/bin"}


def test_a_childs_allocator_has_expandable_segments_by_default() -> None:
    assert child_environment({}, job())["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        made = child_environment({name: "backend:native"}, job())
        assert {key: value for key, value in made.items() if key.startswith("PYTORCH")} == {name: "backend:native"}


def test_a_child_is_in_its_parents_trace_and_leaves_the_spans_to_it() -> None:
    made = child_environment({"OTEL_TRACES_EXPORTER": "otlp"}, job(), trace_parent="00-ab-cd-01")
    assert (made["TRACEPARENT"], made["OTEL_TRACES_EXPORTER"]) == ("00-ab-cd-01", "none")
    assert "TRACEPARENT" not in child_environment({}, job())


def test_a_child_sends_its_metrics_where_the_flag_says() -> None:
    inherited = {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://a:1", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "grpc"}
    made = child_environment(inherited, job(otlp_endpoint="http://b:2", otlp_protocol="http/protobuf"))
    assert {key: value for key, value in made.items() if key.startswith("OTEL_EXPORTER")} == {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://b:2",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    }
    assert child_environment(inherited, job())["OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"] == "http://a:1"


def test_a_child_finds_the_package_wherever_it_is_started() -> None:
    assert child_environment({}, job())["PYTHONPATH"] == str(ROOT)
    assert child_environment({"PYTHONPATH": "/x"}, job())["PYTHONPATH"] == f"{ROOT}{os.pathsep}/x"


def test_events_come_in_order_and_other_words_are_complaints() -> None:
    ending, events = run(
        ["say", encode(Spans("a"))], ["say", "a library prints"], ["complain", "and warns"], ["say", encode(Spans("b"))]
    )
    assert events == [Spans("a"), Spans("b")]
    assert (ending.exit_code, ending.timed_out) == (0, False)
    assert set(ending.errors) == {"a library prints\n", "and warns\n"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_what_a_killed_child_said_is_kept(number: signal.Signals) -> None:
    ending, events = run(["say", encode(Spans("a"))], ["die", number])
    assert events == [Spans("a")]
    assert (ending.exit_code, ending.timed_out) == (-number, False)


def test_a_child_that_hangs_is_killed_and_its_events_are_kept() -> None:
    ending, events = run(["say", encode(Spans("a"))], ["hang"], timeout=2.0)
    assert events == [Spans("a")]
    assert (ending.exit_code, ending.timed_out) == (-signal.SIGKILL, True)


def test_every_trial_has_the_whole_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial that is over sets the clock back; anything else does not."""
    now = iter([0.0, 0.0, 50.0, 90.0, 91.0, 189.0])
    asked: list[float] = []

    class Lines:
        lines = iter(
            [encode(Spans("a")), encode(Finished(0, None, False, observation(trial(8), 3.0))), encode(Spans("b")), None]
        )

        def get(self, timeout: float) -> str | None:
            asked.append(timeout)
            return next(self.lines)

    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    assert launcher._listen(Lines(), 100.0, lambda event: None, lambda line: None)  # type: ignore[arg-type]
    assert asked == [100.0, 50.0, 99.0, 1.0]


def test_a_child_that_does_not_read_its_job_is_known_by_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_MODULE", "no.such.module")
    ending, events = run()
    assert (ending.exit_code, events) == (1, [])
    assert "No module named" in ending.complaint


def test_the_child_ends_with_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    popen = launcher.subprocess.Popen

    def remember(*arguments: Any, **options: Any) -> Any:
        started.append(popen(*arguments, **options))
        return started[-1]

    def interrupted(event: Event) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launcher.subprocess, "Popen", remember)
    environment = child_environment(
        {**os.environ, "STAND_IN": json.dumps([["say", encode(Spans("a"))], ["hang"]])}, job()
    )
    with pytest.raises(KeyboardInterrupt):
        run_child(job(), environment, 30.0, interrupted)
    assert started[0].returncode == -signal.SIGKILL
