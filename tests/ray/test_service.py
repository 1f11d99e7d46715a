"""The serving example on Ray Serve: replicas on two nodes behind the one queue; cancelled, killed, scaled."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from acestep_otel import semconv
from examples.serving import __main__ as service_main
from examples.serving.app import create_app
from examples.serving.card_process import Unusable
from examples.serving.ray_replicas import start_replicas, stop_replicas
from tests.ray.conftest import running_cluster
from tests.receivers import Received, grpc_receiver
from tests.serving.test_service import CALLER, InMemory

pytest.importorskip("ray.serve", reason="Ray Serve is not installed: make test-ray")
# Ray and its processes give warnings of their own.
pytestmark = pytest.mark.filterwarnings("default")

SONG = {"caption": "a caption nobody may see", "duration": 10, "inference_steps": 2, "seed": 1}
LONG = {**SONG, "duration": 600, "inference_steps": 100}
ANOTHER_CALLER = CALLER.replace("0af7", "1af7")


@pytest.fixture(scope="module")
def receiver() -> Iterator[Received]:
    with grpc_receiver() as received:
        yield received


@pytest.fixture(scope="module")
def makers(receiver: Received) -> Iterator[Any]:
    """One replica at first, and two when songs wait; started once: that takes a while."""
    with pytest.MonkeyPatch.context() as environment, running_cluster(environment) as cluster:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        options = argparse.Namespace(
            ray=cluster.address, replicas="1-2", scale_up=1.0, scale_down=600.0, queue=4, tiny=True, device="auto"
        )
        yield start_replicas(options)
        stop_replicas()


@pytest.fixture
def service(traced: Any, makers: Any) -> Iterator[TestClient]:
    with TestClient(create_app(makers, InMemory(traced), capacity=4, kept=16)) as client:
        yield client


def ask(service: TestClient, song: dict[str, Any] = SONG, headers: dict[str, str] | None = None) -> str:
    answer = service.post("/songs", json=song, headers=headers)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def end_of(service: TestClient, song: str) -> list[dict[str, Any]]:
    with service.stream("GET", f"/songs/{song}/events") as events:
        return [json.loads(line.removeprefix("data: ")) for line in events.iter_lines() if line]


def wait_until(condition: Callable[[], object], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def state_of(service: TestClient, song: str) -> dict[str, Any]:
    found: dict[str, Any] = service.get(f"/songs/{song}").json()
    return found


def spans_of(receiver: Received, caller: str) -> list[tuple[Any, dict[str, str]]]:
    """Spans that replicas sent of a caller's trace, with their attributes."""
    return [
        (span, {pair.key: pair.value.string_value for pair in span.attributes})
        for request in receiver.traces
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
        if span.trace_id.hex() == caller.split("-")[1]
    ]


def root_of(receiver: Received, caller: str) -> tuple[Any, dict[str, str]]:
    def found() -> list[tuple[Any, dict[str, str]]]:
        return [pair for pair in spans_of(receiver, caller) if pair[0].name == semconv.GENERATE_MUSIC]

    wait_until(found)
    (root,) = found()
    return root


def test_one_trace_from_the_caller_to_the_step_in_the_replica(
    service: TestClient, traced: Any, receiver: Received
) -> None:
    song = ask(service, headers={"traceparent": CALLER})
    assert end_of(service, song)[-1] == {"state": "done", "songs": 1}
    assert service.get(f"/songs/{song}/audio/1").content.startswith(b"fLaC")
    card = state_of(service, song)["worker"]
    root, attributes = root_of(receiver, CALLER)
    (post,) = traced.named("POST /songs")
    assert root.parent_span_id.hex() == f"{post.context.span_id:016x}"
    assert sum(span.name == semconv.DIT_STEP for span, _ in spans_of(receiver, CALLER)) == 2
    assert (attributes["acestep.worker"], attributes["host.name"] != "") == (card, True)
    (waited,) = traced.named(semconv.QUEUE_WAIT)
    assert f"{waited.context.trace_id:032x}" == CALLER.split("-")[1]


def test_waiting_songs_start_another_replica_and_a_full_queue_rejects_callers(service: TestClient) -> None:
    songs = [ask(service, LONG) for _ in range(2)]
    wait_until(lambda: state_of(service, songs[0])["state"] == "running")
    # The other one waits, for all that its caller sees, until there is a replica that begins with it.
    wait_until(lambda: all(state_of(service, song)["state"] == "running" for song in songs))
    assert len({state_of(service, song)["worker"] for song in songs}) == 2
    waiting = [ask(service) for _ in range(4)]
    refused = service.post("/songs", json=SONG)
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "2")
    for song in songs:
        service.delete(f"/songs/{song}")
    assert [end_of(service, song)[-1]["state"] for song in songs] == ["cancelled", "cancelled"]
    assert [end_of(service, song)[-1]["state"] for song in waiting] == ["done"] * 4


def test_a_cancelled_song_stops_between_two_steps_and_frees_its_replica(
    service: TestClient, receiver: Received
) -> None:
    song = ask(service, LONG, {"traceparent": ANOTHER_CALLER})
    wait_until(lambda: any("stage" in event for event in service.app.state.workers.find(song).events._events))  # type: ignore[attr-defined]
    start = time.monotonic()
    service.delete(f"/songs/{song}")
    assert end_of(service, song)[-1] == {"state": "cancelled"}
    assert end_of(service, ask(service))[-1]["state"] == "done"
    assert time.monotonic() - start < 20
    assert root_of(receiver, ANOTHER_CALLER)[1][semconv.OUTCOME] == "cancelled"


def test_a_song_whose_replica_is_killed_is_made_by_another(service: TestClient) -> None:
    song = ask(service, {**LONG, "duration": 60, "inference_steps": 60})
    wait_until(lambda: state_of(service, song)["state"] == "running")
    first = state_of(service, song)["worker"]
    os.kill(busiest_replica(), signal.SIGKILL)
    assert end_of(service, song)[-1] == {"state": "done", "songs": 1}
    assert state_of(service, song)["worker"] != first
    assert service.app.state.workers.find(song).attempts == 2  # type: ignore[attr-defined]


def busiest_replica() -> int:
    """The process that makes the song."""
    listed = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    replicas = [int(line.split()[0]) for line in listed.splitlines() if "ray::ServeReplica:acestep" in line]
    before = {number: processor_time(number) for number in replicas}
    time.sleep(0.5)
    return max(replicas, key=lambda number: processor_time(number) - before[number])


def processor_time(number: int) -> int:
    fields = Path(f"/proc/{number}/stat").read_text("utf-8").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_no_cluster_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(_options: argparse.Namespace) -> None:
        raise Unusable("--ray auto: Could not find any running Ray instance")

    monkeypatch.setattr(service_main, "set_up", lambda: None)
    monkeypatch.setattr(service_main, "start_replicas", refuse)
    monkeypatch.setattr(sys, "argv", ["program", "--tiny", "--ray", "auto"])
    with pytest.raises(SystemExit) as left:
        service_main.main()
    assert left.value.code == 2
    assert capsys.readouterr().err == "error: --ray auto: Could not find any running Ray instance\n"


@pytest.mark.parametrize("word", ["0", "2-1", "many", "1-"])
def test_a_number_of_replicas_that_cannot_be_is_refused(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "--tiny", "--ray", "auto", "--replicas", word])
    with pytest.raises(SystemExit) as left:
        service_main.main()
    assert left.value.code == 2
    assert f"'{word}' is not a number of replicas: 4, or 1-8" in capsys.readouterr().err
