"""Threads and asyncio: no parent is lost and none is another's; instrumenting twice changes nothing."""

import asyncio
import contextvars
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from acestep import inference
from acestep.inference import generate_music
from acestep.types import GenerationRequest
from acestep_otel import semconv
from acestep_otel.instrumentor import AceStepInstrumentor
from acestep_otel.recording.vram import VramTracker
from tests.allocator import Allocator
from tests.tracing import tree

SONG = GenerationRequest(caption="a song", duration=10, seeds=(7,), inference_steps=2)
STAGES = ["acestep.condition", ("acestep.dit", ["acestep.dit.step"] * 2), ("acestep.vae.decode", ["acestep.vae.tile"])]


@pytest.fixture
def tracer(traced):
    traced.instrument()
    return traced.provider.get_tracer("service")


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


def test_instrumenting_twice_traces_once_and_is_taken_off_once(traced, tiny_models):
    original = vars(inference)["_generate"]
    traced.instrument()
    traced.instrument()
    generate_music(tiny_models, SONG)
    assert trees(traced) == [[("generate_music", STAGES)]]
    AceStepInstrumentor().uninstrument()
    assert vars(inference)["_generate"] is original
    AceStepInstrumentor().uninstrument()
    assert vars(inference)["_generate"] is original


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
    monkeypatch.setattr("acestep_otel.recording.layer.VramTracker", lambda: tracker)
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
