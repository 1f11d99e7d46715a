"""Threads and asyncio: every span has the right parent; instrumenting twice changes nothing."""

import asyncio
import contextvars
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

from acestep.inference import MusicPipeline, generate_music
from acestep.types import GenerationRequest
from acestep_otel import QueueTelemetry, semconv
from acestep_otel.instrumentor import AceStepInstrumentor
from acestep_otel.recording.vram import VramTracker
from tests.allocator import Allocator
from tests.tracing import Traced, tree

SONG = GenerationRequest(caption="a song", duration=10, seeds=(7,), inference_steps=2)
THINKING = replace(SONG, thinking=True)
STAGES = ["acestep.condition", ("acestep.dit", ["acestep.dit.step"] * 2), ("acestep.vae.decode", ["acestep.vae.tile"])]


@pytest.fixture
def tracer(traced):
    traced.instrument()
    return traced.tracer_provider.get_tracer("service")


def trees(traced):
    by_trace = {}
    for span in traced.spans:
        by_trace.setdefault(span.context.trace_id, []).append(span)
    return [tree(spans) for spans in by_trace.values()]


def test_coroutines_that_hand_songs_to_threads_keep_their_own(traced, tracer, tiny_models):
    async def request(number):
        with tracer.start_as_current_span(f"request {number}"):
            await asyncio.to_thread(generate_music, tiny_models, SONG)

    async def service():
        await asyncio.gather(*(request(number) for number in range(3)))

    asyncio.run(service())
    assert sorted(trees(traced)) == [[(f"request {n}", [("generate_music", STAGES)])] for n in range(3)]


def test_an_executor_keeps_the_parent_with_a_copied_context_and_crosses_none_without(traced, tracer, tiny_models):
    with ThreadPoolExecutor(2) as pool, tracer.start_as_current_span("request"):
        context = contextvars.copy_context()
        with_context = pool.submit(context.run, generate_music, tiny_models, SONG)
        without = pool.submit(generate_music, tiny_models, SONG)
        with_context.result()
        without.result()
    assert sorted(trees(traced), key=str) == sorted(
        [[("request", [("generate_music", STAGES)])], [("generate_music", STAGES)]], key=str
    )


def test_a_generator_that_is_resumed_elsewhere_leaves_no_context_behind(traced, tracer, tiny_models):
    def songs():
        while True:
            yield generate_music(tiny_models, SONG)

    generator = songs()
    for _ in range(2):
        contextvars.copy_context().run(next, generator)
    assert trees(traced) == [[("generate_music", STAGES)]] * 2
    generate_music(tiny_models, SONG)
    assert traced.named("generate_music")[-1].parent is None


class Callback:
    """Keeps a copy of the context that it is first called in, as a task does that it starts."""

    def __init__(self, work=lambda: None):
        self.work = work
        self.context = None

    def __call__(self, _progress):
        if self.context is None:
            self.context = contextvars.copy_context()
            self.work()


@pytest.mark.parametrize("sampled", [True, False])
def test_a_task_that_outlives_its_request_creates_separate_requests(tiny_models, sampled):
    """Its context says still that the request runs."""
    plain = generate_music(tiny_models, THINKING)
    traced = Traced(ALWAYS_ON if sampled else ALWAYS_OFF)
    traced.instrument()
    try:
        callback = Callback()
        generate_music(tiny_models, SONG, progress=callback)
        song = callback.context.run(generate_music, tiny_models, THINKING)
    finally:
        AceStepInstrumentor().uninstrument()
    assert torch.equal(song.songs[0].audio, plain.songs[0].audio)
    assert sum(point.value for point in traced.metric(semconv.REQUESTS)) == 2
    assert len(traced.named("generate_music")) == (2 if sampled else 0)


def test_a_thread_that_is_started_inside_a_request_crosses_no_stages_with_it(traced, tracer, tiny_models):
    def song_beside():
        with ThreadPoolExecutor(1) as pool:
            pool.submit(contextvars.copy_context().run, generate_music, tiny_models, SONG).result()

    generate_music(tiny_models, SONG, progress=Callback(song_beside))
    outer = next(span for span in traced.named("generate_music") if span.parent is None)
    beside = next(span for span in traced.named("generate_music") if span.parent is not None)
    assert beside.parent.span_id == outer.context.span_id
    for song in (outer, beside):
        stages = [span for span in traced.spans if span.parent and span.parent.span_id == song.context.span_id]
        own = [span.name for span in stages if span is not beside]
        assert own == ["acestep.condition", "acestep.dit", "acestep.vae.decode"]


def test_a_song_continues_when_tracing_ends_during_it(traced, tiny_models):
    """At the end of a process a thread may still be at work, here in a pass of the language model."""
    plain = generate_music(tiny_models, THINKING)
    traced.instrument()
    song = generate_music(tiny_models, THINKING, progress=Callback(AceStepInstrumentor().finish))
    assert torch.equal(song.songs[0].audio, plain.songs[0].audio)
    (root,) = traced.named("generate_music")
    assert root.attributes[semconv.TRUNCATED]


def seen_in_a_child(look):
    """The state of a forked child."""
    reading, writing = os.pipe()
    if child := os.fork():
        os.close(writing)
        os.waitpid(child, 0)
        with os.fdopen(reading) as told:
            return json.load(told)
    try:
        os.write(writing, json.dumps(look()).encode())
    finally:
        os._exit(0)


def test_a_child_that_is_forked_inside_a_request_traces_its_songs(traced, tracer, tiny_models):
    def song():
        generate_music(tiny_models, SONG)
        return trees(traced)

    children = []
    generate_music(tiny_models, SONG, progress=Callback(lambda: children.append(seen_in_a_child(song))))
    (in_child,) = children
    expected = json.loads(json.dumps([[("generate_music", STAGES)]]))
    assert in_child == expected
    assert json.loads(json.dumps(trees(traced))) == expected


def test_what_counts_now_begins_at_zero_in_a_child(traced, tracer, tiny_models):
    """The boards add the processes up: a request, a place in the queue or its capacity counts in one of them."""
    queue = QueueTelemetry(4, tracer_provider=traced.tracer_provider, meter_provider=traced.meter_provider)
    waiting = queue.enter()

    def now():
        metrics = (semconv.REQUESTS_ACTIVE, semconv.QUEUE_LENGTH, semconv.QUEUE_CAPACITY)
        return [sum(point.value for point in traced.metric(metric)) for metric in metrics]

    def used():
        queue.enter()
        waiting.leave()
        return now()

    def after_a_song():
        generate_music(tiny_models, SONG)
        return now()

    seen = []
    looks = (now, used, after_a_song)
    generate_music(tiny_models, SONG, progress=Callback(lambda: seen.extend([*map(seen_in_a_child, looks), now()])))
    assert seen == [[0, 0, 0], [0, 1, 4], [0, 0, 0], [1, 1, 4]]
    waiting.leave()
    assert now() == [0, 0, 4]


def test_instrumenting_twice_traces_once_and_is_taken_off_once(traced, tiny_models):
    original = vars(MusicPipeline)["generate"]
    traced.instrument()
    traced.instrument()
    generate_music(tiny_models, SONG)
    assert trees(traced) == [[("generate_music", STAGES)]]
    AceStepInstrumentor().uninstrument()
    assert vars(MusicPipeline)["generate"] is original
    AceStepInstrumentor().uninstrument()
    assert vars(MusicPipeline)["generate"] is original


def test_memory_of_requests_that_overlap_is_marked_and_never_reset_under_the_other(monkeypatch):
    gpu, other = torch.device("cuda", 0), torch.device("cuda", 1)
    allocator, tracker = Allocator(monkeypatch), VramTracker()
    with tracker.request(gpu):
        tracker.begin(gpu)
        allocator.use(10)
        allocator.use(3)
        with tracker.request(gpu):
            tracker.begin(gpu)
            assert (allocator.resets, allocator.allocated_peak) == (1, 10)
            assert tracker.read(gpu).peak.shared is True
            with tracker.request(other):
                tracker.begin(other)
                assert tracker.read(other).peak.shared is False
        # The peak of a stage that began beside the other request may still be the other's.
        assert tracker.read(gpu).peak.shared is True
    with tracker.request(gpu):
        tracker.begin(gpu)
        assert tracker.read(gpu).peak.shared is False


def test_a_model_that_is_loaded_beside_a_request_shares_its_memory(traced, tiny_models, monkeypatch):
    from acestep import checkpoints

    gpu = torch.device("cuda", 0)
    allocator, tracker = Allocator(monkeypatch), VramTracker()
    monkeypatch.setattr("acestep_otel.recording.request_tracer.VramTracker", lambda: tracker)
    monkeypatch.setattr(checkpoints, "start_planner", lambda selection, device: "model")
    traced.instrument()
    with tracker.request(gpu):
        tracker.begin(gpu)
        resets = allocator.resets
        checkpoints.start_planner(checkpoints.ModelSelection(), gpu)
        assert allocator.resets == resets
    AceStepInstrumentor().uninstrument()
    (load,) = traced.named("acestep.model.load")
    assert load.attributes[semconv.VRAM_SHARED] is True
