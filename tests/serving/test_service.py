"""The serving example: its interface, and each request's trace from the caller through queue and thread."""

import json
import threading
import time

import pytest
from fastapi.testclient import TestClient
from opentelemetry import propagate
from opentelemetry.propagators.composite import CompositePropagator

import acestep_otel
from acestep.errors import OutOfMemory
from acestep_otel import instrumentor, semconv
from acestep_otel.forced_sampling.profiling import ProfilePropagator
from examples.serving import makers
from examples.serving.app import create_app
from examples.serving.jobs import Job
from examples.serving.makers import OwnMaker
from tests.tracing import tree

SONG = {"caption": "a caption nobody may see", "duration": 10, "inference_steps": 2, "seed": 1}
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
STAGES = [
    "acestep.condition",
    ("acestep.dit", ["acestep.dit.step"] * 2),
    ("acestep.vae.decode", ["acestep.vae.tile"]),
    "acestep.audio.save",
]


class InMemory(acestep_otel.ServiceTelemetry):
    """The service's telemetry, on the test's providers."""

    def __init__(self, traced):
        super().__init__(traced.tracer_provider, traced.meter_provider)

    def close(self):
        """The providers are the test's."""


@pytest.fixture
def service(traced, tiny_models):
    traced.instrument()
    app = create_app([OwnMaker(tiny_models)], InMemory(traced), capacity=2, kept=3)
    with TestClient(app) as client:
        yield client


@pytest.fixture
def held(monkeypatch):
    """Blocks songs until it is set."""
    release = threading.Event()
    original = makers.generate_music

    def wait(*args, **kwargs):
        assert release.wait(30)
        return original(*args, **kwargs)

    monkeypatch.setattr(makers, "generate_music", wait)
    yield release
    release.set()


def ask(service, headers=None, **changes):
    return service.post("/songs", json={**SONG, **changes}, headers=headers)


def follow(service, song):
    with service.stream("GET", f"/songs/{song}/events") as events:
        return [json.loads(line.removeprefix("data: ")) for line in events.iter_lines() if line]


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_song_is_generated_reported_and_delivered(service):
    answer = ask(service)
    assert answer.status_code == 202
    song = answer.json()["id"]
    events = follow(service, song)
    assert [events[0]["state"], events[-1]["state"]] == ["waiting", "done"]
    assert {"state": "running", "stage": "dit", "done": 2, "total": 2} in events
    audio = service.get(f"{answer.headers['Location']}/audio/1")
    assert audio.content.startswith(b"fLaC")
    assert service.get(f"/songs/{song}").json() == {
        "id": song,
        "state": "done",
        "error": None,
        "songs": 1,
        "worker": None,
    }


def test_the_caller_s_trace_goes_through_the_queue_and_the_thread(service, traced):
    song = ask(service, headers={"traceparent": CALLER}).json()["id"]
    follow(service, song)
    wait_until(lambda: traced.named("generate_music"))
    posts = [span for span in traced.spans if f"{span.context.trace_id:032x}" in CALLER]
    assert tree(posts) == [("POST /songs", [semconv.QUEUE_WAIT, ("generate_music", STAGES)])]
    (root,) = [span for span in posts if span.name == "POST /songs"]
    assert f"{root.parent.span_id:016x}" in CALLER
    (waited,) = traced.named(semconv.QUEUE_WAIT)
    (point,) = traced.metric(semconv.QUEUE_WAIT_DURATION)
    assert (point.count, dict(point.attributes)) == (1, {semconv.OUTCOME: "ok"})
    assert point.exemplars[0].span_id == waited.context.span_id
    assert "nobody may see" not in "".join(span.to_json() for span in traced.spans)


def test_callers_that_come_at_once_keep_their_traces_apart(service, traced, held):
    callers = [f"00-{number:032x}-{number:016x}-01" for number in (1, 2, 3)]
    songs = [ask(service, headers={"traceparent": callers[0]}).json()["id"]]
    wait_until(lambda: service.get("/healthz").json()["waiting"] == 0)
    songs += [ask(service, headers={"traceparent": caller}).json()["id"] for caller in callers[1:]]
    held.set()
    for song in songs:
        assert follow(service, song)[-1]["state"] == "done"
    wait_until(lambda: len(traced.named("generate_music")) == 3)
    for number in (1, 2, 3):
        names = [span.name for span in traced.spans if span.context.trace_id == number]
        assert names.count("generate_music") == names.count(semconv.QUEUE_WAIT) == 1
        assert names.count("acestep.dit.step") == 2


def test_a_full_queue_rejects_callers_and_counts_them(service, traced, held):
    running = ask(service).json()["id"]
    wait_until(lambda: service.get(f"/songs/{running}").json()["state"] == "running")
    assert [ask(service).status_code for _ in range(3)] == [202, 202, 429]
    assert ask(service).headers["Retry-After"] == "2"
    assert traced.metric(semconv.QUEUE_REJECTED)[0].value == 2
    assert traced.metric(semconv.QUEUE_LENGTH)[0].value == service.get("/healthz").json()["waiting"] == 2
    assert traced.metric(semconv.QUEUE_CAPACITY)[0].value == 2


def test_a_song_can_be_cancelled_in_the_queue_and_at_work(service, traced, held):
    running, waiting = (ask(service).json()["id"] for _ in range(2))
    wait_until(lambda: service.get(f"/songs/{running}").json()["state"] == "running")
    assert service.delete(f"/songs/{waiting}").json()["state"] == "cancelled"
    assert service.delete(f"/songs/{running}").status_code == 202
    held.set()
    for song in (running, waiting):
        assert follow(service, song)[-1]["state"] == "cancelled"
    wait_until(lambda: traced.named("generate_music"))
    (root,) = traced.named("generate_music")
    assert root.attributes[semconv.OUTCOME] == "cancelled"
    assert semconv.ERROR_TYPE not in root.attributes
    assert root.status.is_unset
    outcomes = {point.attributes[semconv.OUTCOME]: point.count for point in traced.metric(semconv.QUEUE_WAIT_DURATION)}
    assert outcomes == {"ok": 1, "cancelled": 1}
    assert traced.metric(semconv.QUEUE_LENGTH)[0].value == 0


def test_a_song_cancelled_as_soon_as_a_worker_has_taken_it_still_has_its_span(service, traced, monkeypatch):
    original = Job.move_to

    def cancel_what_runs(job, state, **details):
        original(job, state, **details)
        if state == "running":
            service.app.state.workers.cancel(job)

    monkeypatch.setattr(Job, "move_to", cancel_what_runs)
    song = ask(service).json()["id"]
    assert follow(service, song)[-1]["state"] == "cancelled"
    wait_until(lambda: traced.named("generate_music"))
    assert traced.named("generate_music")[0].attributes[semconv.OUTCOME] == "cancelled"
    assert traced.named(semconv.QUEUE_WAIT)[0].attributes[semconv.OUTCOME] == "ok"


def test_a_song_that_runs_out_of_memory_fails_alone(service, monkeypatch):
    def fail(*args, **kwargs):
        raise OutOfMemory("out of memory in stage 'dit'", stage="dit")

    with monkeypatch.context() as broken:
        broken.setattr(makers, "generate_music", fail)
        failed = follow(service, ask(service).json()["id"])[-1]
    assert failed == {"state": "failed", "error": "OutOfMemory", "stage": "dit"}
    assert follow(service, ask(service).json()["id"])[-1]["state"] == "done"
    assert service.get("/healthz").json() == {"alive": True, "waiting": 0, "workers": 1}


@pytest.mark.parametrize(
    ("changes", "said"), [({"duration": 5}, "10"), ({"seed": -1}, "seed"), ({"lyrics": 3}, "string")]
)
def test_what_cannot_be_made_is_refused_at_once(service, changes, said):
    answer = ask(service, **changes)
    assert answer.status_code == 422
    assert said in answer.text


def test_unknown_songs_are_404(service):
    assert service.get("/songs/unknown").status_code == 404
    assert service.get("/songs/unknown/audio/1").status_code == 404


def test_only_the_last_songs_are_kept(service):
    songs = []
    for _ in range(5):
        songs.append(ask(service).json()["id"])
        follow(service, songs[-1])
    assert [service.get(f"/songs/{song}").status_code for song in songs] == [404, 404, 200, 200, 200]


def test_shutdown_cancels_remaining_songs_and_leaves_no_thread(traced, tiny_models, held):
    traced.instrument()
    app = create_app([OwnMaker(tiny_models)], InMemory(traced))
    with TestClient(app) as client:
        songs = [ask(client).json()["id"] for _ in range(3)]
        jobs = [app.state.workers.find(song) for song in songs]
        threading.Timer(0.2, held.set).start()
    assert [job.state for job in jobs] == ["cancelled"] * 3
    assert "worker" not in {thread.name for thread in threading.enumerate()}
    assert traced.metric(semconv.QUEUE_LENGTH)[0].value == 0


class Recorded(OwnMaker):
    """Notes what is assigned, and the states of all jobs then."""

    def __init__(self, models):
        super().__init__(models)
        self.jobs = []
        self.states = []

    def assign(self, job, folder):
        self.jobs.append(job)
        self.states.append([known.state for known in self.jobs])


def test_a_card_has_its_next_song_before_the_previous_one_is_completed(traced, tiny_models, held):
    maker = Recorded(tiny_models)
    with TestClient(create_app([maker], InMemory(traced))) as client:
        songs = [ask(client).json()["id"] for _ in range(3)]
        held.set()
        assert [follow(client, song)[-1]["state"] for song in songs] == ["done"] * 3
        wait_until(lambda: client.app.state.workers._running == {})
    assert [job.id for job in maker.jobs] == songs
    assert maker.states == [["waiting"], ["running", "waiting"], ["done", "running", "waiting"]]


def test_a_worker_that_died_gets_no_song_until_it_has_started_again(traced, tiny_models, held, monkeypatch):
    maker = Recorded(tiny_models)
    events = []

    def die_once(job, folder, report):
        assert held.wait(30)
        events.append("make")
        if events.count("make") == 1:
            raise makers.WorkerDied("it died")
        return OwnMaker.make(maker, job, folder, report)

    original = maker.assign
    monkeypatch.setattr(maker, "make", die_once)
    monkeypatch.setattr(maker, "start", lambda: events.append("start"))
    monkeypatch.setattr(maker, "assign", lambda job, folder: (events.append("assign"), original(job, folder)))
    with TestClient(create_app([maker], InMemory(traced))) as client:
        songs = [ask(client).json()["id"] for _ in range(2)]
        held.set()
        assert [follow(client, song)[-1]["state"] for song in songs] == ["done"] * 2
        wait_until(lambda: client.app.state.workers._running == {})
    assert events[:6] == ["start", "assign", "make", "start", "assign", "make"]
    assert [job.id for job in maker.jobs] == [songs[0], songs[0], songs[1]]


def test_health_and_metrics_are_for_machines(service):
    assert service.get("/healthz").status_code == 200
    assert "# TYPE" in service.get("/metrics").text


def test_an_operator_has_one_song_profiled_and_a_stranger_none(service, traced, tmp_path, monkeypatch):
    """Through the HTTP interface, the queue and the worker's thread."""
    profiles = tmp_path / "profiles"
    monkeypatch.setenv("ACESTEP_OTEL_PROFILE_TOKEN", "operators only")
    instrumentor.AceStepInstrumentor().uninstrument()
    monkeypatch.setenv("ACESTEP_OTEL_PROFILE_DIR", str(profiles))
    traced.instrument()
    monkeypatch.setattr(
        propagate, "_HTTP_TEXT_FORMAT", CompositePropagator([propagate.get_global_textmap(), ProfilePropagator()])
    )
    follow(service, ask(service, headers={"X-Profile": "a guess"}).json()["id"])
    assert not profiles.exists()
    follow(service, ask(service, headers={"X-Profile": "operators only"}).json()["id"])
    wait_until(lambda: traced.metric(semconv.PROFILES) != [])
    (path,) = profiles.iterdir()
    places = [span.attributes.get(semconv.PROFILE_FILE) for span in traced.spans if span.name == "generate_music"]
    assert places == [None, str(path)]
