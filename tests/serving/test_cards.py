"""The serving example on several cards: real processes on the CPU behind the one queue; killed, stopped, cancelled."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time

import httpx
import pytest
from fastapi.testclient import TestClient

from acestep import choose_cards
from acestep_otel import semconv
from benchmarks.collectors import free_port
from benchmarks.service import wait_until_healthy
from examples.serving import __main__ as service_main
from examples.serving.app import create_app
from examples.serving.card_process import CardMaker, Unusable, worker_environment
from tests.receivers import grpc_receiver
from tests.services import ROOT
from tests.serving.test_service import CALLER, InMemory

SONG = {"caption": "a caption nobody may see", "duration": 10, "inference_steps": 2, "seed": 1}
LONG = {**SONG, "duration": 60, "inference_steps": 100}
OPTIONS = argparse.Namespace(tiny=True, device="auto")


@pytest.fixture(scope="module")
def receiver():
    with grpc_receiver() as received:
        yield received


@pytest.fixture(scope="module")
def makers(receiver):
    """Two processes that send their telemetry to the receiver, started once: that takes seconds."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        environment.setenv("OTEL_METRIC_EXPORT_INTERVAL", "500")
        made = [Kept(card, OPTIONS, 2) for card in choose_cards("cpu:2")]
        for maker in made:
            maker.start()
        yield made
        for maker in made:
            CardMaker.close(maker)


class Kept(CardMaker):
    """Survives the service of one test."""

    def close(self):
        """The next test's service goes on with the process."""


@pytest.fixture
def service(traced, makers):
    app = create_app(makers, InMemory(traced), capacity=4, kept=16)
    with TestClient(app) as client:
        yield client


def ask(service, song=SONG, headers=None):
    answer = service.post("/songs", json=song, headers=headers)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def end_of(service, song):
    with service.stream("GET", f"/songs/{song}/events") as events:
        return [json.loads(line.removeprefix("data: ")) for line in events.iter_lines() if line]


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def running(service, song):
    """Wait until a song is being made, and return who makes it."""
    wait_until(lambda: service.get(f"/songs/{song}").json()["state"] == "running")
    return service.get(f"/songs/{song}").json()["worker"]


def test_songs_are_generated_in_parallel_and_name_their_card(service):
    songs = [ask(service, LONG) for _ in range(2)]
    assert {running(service, song) for song in songs} == {"CPU 0", "CPU 1"}
    for song in songs:
        service.delete(f"/songs/{song}")
        assert end_of(service, song)[-1] == {"state": "cancelled"}
    song = ask(service)
    assert end_of(service, song)[-1] == {"state": "done", "songs": 1}
    assert service.get(f"/songs/{song}/audio/1").content.startswith(b"fLaC")


def test_one_trace_from_the_caller_to_the_step_and_the_card_is_on_it(service, traced, receiver):
    song = ask(service, headers={"traceparent": CALLER})
    assert end_of(service, song)[-1]["state"] == "done"
    card = service.get(f"/songs/{song}").json()["worker"]
    trace_id = CALLER.split("-")[1]

    def spans():
        return [
            (span, {pair.key: pair.value.string_value for pair in span.attributes}, resource.resource)
            for request in receiver.traces
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
            if span.trace_id.hex() == trace_id
        ]

    wait_until(lambda: any(span.name == semconv.GENERATE_MUSIC for span, *_ in spans()))
    ((root, _, resource),) = [found for found in spans() if found[0].name == semconv.GENERATE_MUSIC]
    (post,) = traced.named("POST /songs")
    assert root.parent_span_id.hex() == f"{post.context.span_id:016x}"
    (waited,) = traced.named(semconv.QUEUE_WAIT)
    assert f"{waited.context.trace_id:032x}" == trace_id
    assert sum(span.name == semconv.DIT_STEP for span, *_ in spans()) == 2
    assert {attributes["acestep.worker"] for _, attributes, _ in spans()} == {card}
    assert all(attributes["host.name"] for _, attributes, _ in spans())
    assert {pair.key: pair.value.string_value for pair in resource.attributes}["acestep.worker"] == card
    assert "nobody may see" not in str(receiver.traces)


def test_metrics_of_every_worker_are_served_with_its_card(service, receiver):
    song = ask(service)
    end_of(service, song)
    card = service.get(f"/songs/{song}").json()["worker"]
    lines = service.get("/metrics").text.splitlines()
    counted = [line for line in lines if line.startswith("acestep_requests_total{") and f'"{card}"' in line]
    assert len(counted) >= 1
    assert len([line for line in lines if line == "# TYPE target_info gauge"]) == 1
    assert {f'acestep_worker="CPU {number}"' in "\n".join(lines) for number in (0, 1)} == {True}


def test_a_full_queue_rejects_callers_with_any_number_of_workers(service):
    held = [ask(service, LONG) for _ in range(2)]
    for song in held:
        running(service, song)
    waiting = [ask(service) for _ in range(4)]
    assert service.post("/songs", json=SONG).status_code == 429
    for song in held:
        service.delete(f"/songs/{song}")
    assert [end_of(service, song)[-1]["state"] for song in waiting] == ["done"] * 4


def test_a_cancelled_song_leaves_its_process_to_the_next(service, makers):
    before = [maker.process_id for maker in makers]
    song = ask(service, LONG)
    running(service, song)
    start = time.monotonic()
    service.delete(f"/songs/{song}")
    events = end_of(service, song)
    assert events[-1] == {"state": "cancelled"}
    # Between two of its hundred steps.
    assert time.monotonic() - start < 5
    assert end_of(service, ask(service))[-1]["state"] == "done"
    assert [maker.process_id for maker in makers] == before


def test_a_song_whose_worker_is_killed_is_made_elsewhere_and_the_worker_is_back(service, makers, traced):
    song = ask(service, {**LONG, "inference_steps": 40})
    card = running(service, song)
    (victim,) = [maker for maker in makers if maker.label == card]
    killed = victim.process_id
    os.kill(killed, signal.SIGKILL)
    events = end_of(service, song)
    assert events[-1]["state"] == "done"
    assert [event["state"] for event in events].count("waiting") == 2
    # It waited in the queue once: from its acceptance to its first worker.
    (point,) = traced.metric(semconv.QUEUE_WAIT_DURATION)
    assert point.count == 1
    wait_until(lambda: service.get("/healthz").json()["workers"] == 2)
    assert victim.process_id not in (killed, None)


def test_a_song_that_kills_its_workers_fails_with_the_reason(service, makers):
    song = ask(service, LONG)
    job = service.app.state.workers.find(song)
    for attempt in (1, 2):
        wait_until(lambda attempt=attempt: (job.attempts, job.state) == (attempt, "running"))
        (victim,) = [maker for maker in makers if maker.label == job.worker]
        os.kill(victim.process_id, signal.SIGKILL)
    assert end_of(service, song)[-1] == {"state": "failed", "error": "WorkerDied", "stage": None}
    wait_until(lambda: service.get("/healthz").json() == {"alive": True, "waiting": 0, "workers": 2})
    assert end_of(service, ask(service))[-1]["state"] == "done"


def test_a_slow_worker_keeps_one_song_and_no_other(service, makers):
    slow_song = ask(service, {**LONG, "inference_steps": 20})
    card = running(service, slow_song)
    (slow,) = [maker for maker in makers if maker.label == card]
    os.kill(slow.process_id, signal.SIGSTOP)
    try:
        others = [ask(service) for _ in range(3)]
        assert [end_of(service, song)[-1]["state"] for song in others] == ["done"] * 3
        assert card not in {service.get(f"/songs/{song}").json()["worker"] for song in others}
        # Its metrics are missing meanwhile, and those of the others are there.
        served = service.get("/metrics").text
        assert f'acestep_worker="{card}"' not in served
        assert "acestep_worker=" in served
    finally:
        os.kill(slow.process_id, signal.SIGCONT)
    assert end_of(service, slow_song)[-1]["state"] == "done"


def test_a_song_that_fails_fails_alone(service, makers, monkeypatch):
    # A folder that cannot be written: the process says what was wrong, and no word of the request.
    monkeypatch.setattr(service.app.state.workers, "_folder", service.app.state.workers._folder / "a" / "\0")
    failed = end_of(service, ask(service))[-1]
    assert (failed["state"], failed["error"]) in (("failed", "AudioWriteError"), ("failed", "ValueError"))
    monkeypatch.undo()
    assert end_of(service, ask(service))[-1]["state"] == "done"


def test_a_process_that_cannot_load_gives_the_reason():
    (card,) = choose_cards("cpu:1")
    options = argparse.Namespace(tiny=False, dit="no-such-model", lm=None, weights="synthetic")
    maker = CardMaker(card, options, 1)
    with pytest.raises(Unusable, match=r"CPU 0: .*no-such-model"):
        maker.start()
    maker.close()
    assert maker.process_id is None


def test_the_environment_names_the_card_and_keeps_what_was_given():
    (card,) = choose_cards("cpu:1")
    made = worker_environment({"OTEL_RESOURCE_ATTRIBUTES": "a=b"}, card, 1)["OTEL_RESOURCE_ATTRIBUTES"]
    assert made == f"acestep.worker=CPU%200,host.name={card.host},a=b"


def start(*arguments, port, **environment):
    nowhere = {f"OTEL_{signal_}_EXPORTER": "none" for signal_ in ("TRACES", "METRICS", "LOGS")}
    return subprocess.Popen(
        [sys.executable, "-m", "examples.serving", "--tiny", "--gpus", "cpu:2", "--port", str(port), *arguments],
        cwd=ROOT, env={**os.environ, **nowhere, **environment},
    )  # fmt: skip


def children_of(process):
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    return [int(word) for word in listed.stdout.split()]


def is_there(process_id):
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def test_accepted_songs_have_time_after_sigterm_and_every_process_ends():
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = start("--drain", "60", port=port)
    try:
        wait_until_healthy(url, process)
        workers = children_of(process)
        assert len(workers) == 2
        songs = [httpx.post(f"{url}/songs", json={**SONG, "duration": 30}).json()["id"] for _ in range(4)]
        with httpx.stream("GET", f"{url}/songs/{songs[-1]}/events", timeout=60) as followed:
            lines = followed.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: httpx.post(f"{url}/songs", json=SONG).status_code == 503, 20)
            last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["state"] == "done"
        assert process.wait(30) in (-signal.SIGTERM, 128 + signal.SIGTERM)
        wait_until(lambda: not any(map(is_there, workers)), 10)
    finally:
        process.kill()
        process.wait()


def test_workers_do_not_outlive_a_service_that_is_killed():
    port = free_port()
    process = start(port=port)
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}", process)
        workers = children_of(process)
        assert len(workers) == 2
        process.kill()
        process.wait()
        wait_until(lambda: not any(map(is_there, workers)), 20)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "two"], "`gpus` 'two': choose GPUs by number"),
        (["--gpus", "cpu:2", "--device", "cuda:1"], "contradict each other"),
        (["--drain", "-1"], "'-1' is not a whole number"),
    ],
)
def test_a_wrong_choice_of_cards_is_exit_code_2(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(service_main, "set_up", lambda: None)
    monkeypatch.setattr(sys, "argv", ["program", "--tiny", *arguments])
    with pytest.raises(SystemExit) as left:
        service_main.main()
    assert left.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_process_that_dies_while_it_starts_is_tried_again(makers, traced, monkeypatch):
    monkeypatch.setattr("examples.serving.worker.RESTART_SECONDS", (0.1,))
    starts = []
    original = CardMaker.start

    def first_fails(maker):
        starts.append(maker.label)
        if len(starts) <= 2:
            raise OSError("no process could be started")
        original(maker)

    monkeypatch.setattr(Kept, "start", first_fails)
    with TestClient(create_app(makers, InMemory(traced))) as client:
        wait_until(lambda: client.get("/healthz").json()["workers"] == 2)
        assert end_of(client, ask(client))[-1]["state"] == "done"
