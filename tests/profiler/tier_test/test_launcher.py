"""Starting a child, reading its events, and ending it (R58)."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from acestep_otel.profiler.children import processes
from acestep_otel.profiler.children.processes import Children, Ending
from acestep_otel.profiler.options import Options
from acestep_otel.profiler.tier_test import launcher
from acestep_otel.profiler.tier_test.launcher import child_environment, start_child
from acestep_otel.profiler.tier_test.plan import Plan, Trials
from acestep_otel.profiler.tier_test.protocol import Event, Spans, decode, encode

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
    with Children(decode) as children:
        started = start_child(children, job(), environment, timeout)
        while True:
            child, event = children.next_event()
            assert child is started
            if isinstance(event, Ending):
                assert not children.running
                return event, events
            events.append(event)


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


def test_a_child_that_proceeds_has_the_whole_time_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 60.0])
    with Children(decode) as children:
        environment = child_environment({**os.environ, "STAND_IN": json.dumps([["hang"]])}, job())
        with monkeypatch.context() as patched:
            patched.setattr(time, "monotonic", lambda: next(now))
            child = start_child(children, job(), environment, 100.0)
            assert child.deadline == 110.0
            child.proceed()
        assert child.deadline == 160.0


def test_children_are_heard_together_and_one_that_hangs_keeps_no_other_waiting() -> None:
    heard: dict[Any, list[Any]] = {}
    with Children(decode) as children:
        for steps, timeout in (
            ([["say", encode(Spans("a"))], ["hang"]], 4.0),
            ([["say", encode(Spans("b"))]], 60.0),
            ([["die", signal.SIGKILL]], None),
        ):
            environment = child_environment({**os.environ, "STAND_IN": json.dumps(steps)}, job())
            heard[children.start(launcher._MODULE, environment, "{}", timeout)] = []
        while children.running:
            child, event = children.next_event()
            heard[child].append(event)
    hung, fine, killed = heard.values()
    assert (hung[0], hung[1].timed_out, hung[1].exit_code) == (Spans("a"), True, -signal.SIGKILL)
    assert (fine[0], fine[1].timed_out, fine[1].exit_code) == (Spans("b"), False, 0)
    assert (killed[0].timed_out, killed[0].exit_code) == (False, -signal.SIGKILL)


def test_a_child_that_does_not_read_its_job_is_known_by_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_MODULE", "no.such.module")
    ending, events = run()
    assert (ending.exit_code, events) == (1, [])
    assert "No module named" in ending.complaint


def test_whatever_happens_to_the_parent_the_children_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    popen = processes.subprocess.Popen

    def remember(*arguments: Any, **options: Any) -> Any:
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(processes.subprocess, "Popen", remember)
    environment = child_environment(
        {**os.environ, "STAND_IN": json.dumps([["say", encode(Spans("a"))], ["hang"]])}, job()
    )

    def interrupted() -> None:
        with Children(decode) as children:
            for _ in range(2):
                start_child(children, job(), environment, 30.0)
            children.next_event()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [process.returncode for process in started] == [-signal.SIGKILL] * 2
