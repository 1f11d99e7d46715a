"""Kernels are matched to the range that launched them, and ranges to spans; the GPU itself is not needed for that."""

import json

import pytest
from opentelemetry.metrics import NoOpMeter
from torch.profiler import ProfilerActivity, profile

from acestep.inference import generate_music
from acestep.types import GenerationRequest
from acestep_otel import semconv
from acestep_otel.recording.layer import TracingLayer
from acestep_otel.settings import Settings
from acestep_otel.targets import acestep
from acestep_otel.targets.seam import Patches
from benchmarks.device_clock import NUMBER, RANGE, RangedLayer, compared, rows_of
from benchmarks.gpu_timeline import device_intervals, load_events, synchronisations
from benchmarks.overhead import percentile
from tests.tracing import Traced


def event(cat, name, start, duration, thread=1, **arguments):
    return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": duration, "tid": thread, "args": arguments}


EVENTS = [
    event("user_annotation", "range-a", 100, 50),
    event("user_annotation", "range-b", 200, 50),
    event("user_annotation", "range-other thread", 100, 200, thread=2),
    event("user_annotation", "range-idle", 400, 10),
    event("user_annotation", "another", 0, 1_000),
    event("cuda_runtime", "cudaLaunchKernel", 100, 5, correlation=1),
    event("cuda_runtime", "cudaMemcpyAsync", 140, 5, correlation=2),
    event("cuda_runtime", "cudaGraphLaunch", 210, 5, correlation=3),
    event("cuda_driver", "cuLaunchKernel", 120, 5, thread=2, correlation=4),
    event("cuda_runtime", "cudaLaunchKernel", 300, 5, correlation=5),
    event("cuda_runtime", "cudaStreamSynchronize", 500, 5, correlation=6),
    event("kernel", "k", 1_000, 10, thread=7, correlation=1),
    event("gpu_memcpy", "m", 1_050, 10, thread=8, correlation=2),
    event("kernel", "first of the graph", 1_100, 10, thread=7, correlation=3),
    event("kernel", "second of the graph", 1_120, 10, thread=7, correlation=3),
    event("kernel", "k", 1_200, 10, thread=9, correlation=4),
    event("kernel", "outside of all ranges", 1_300, 10, thread=7, correlation=5),
    {"ph": "i", "cat": "kernel", "name": "no interval", "ts": 1, "args": {"correlation": 1}},
]


def test_work_belongs_to_the_range_whose_thread_launched_it():
    found = device_intervals(EVENTS, "range-")
    assert {name: (round(start * 1e6), round(end * 1e6)) for name, (start, end) in found.items()} == {
        "a": (1_000, 1_060),
        "b": (1_100, 1_130),
        "other thread": (1_200, 1_210),
    }


def test_waits_are_counted_by_their_call():
    assert synchronisations(EVENTS) == {
        "cudaStreamSynchronize": 1,
        "cudaDeviceSynchronize": 0,
        "cudaEventSynchronize": 0,
    }


def test_every_span_finds_its_own_range(tiny_models, tmp_path):
    traced, patches = Traced(), Patches()
    layer = RangedLayer(traced.provider.get_tracer("test"), NoOpMeter("test"), Settings(), "run")
    assert isinstance(layer, TracingLayer)
    patches.apply(acestep.seams(layer))
    try:
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            generate_music(tiny_models, GenerationRequest(caption="x", duration=10, seeds=(1,), inference_steps=2))
    finally:
        patches.remove()
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    ranges = {e["name"] for e in load_events(tmp_path / "trace.json") if e.get("cat") == "user_annotation"}
    numbers = [span.attributes[NUMBER] for span in traced.spans if span.parent is not None]
    assert len(numbers) == len(set(numbers)) == 6
    assert {f"{RANGE}{number}" for number in numbers} <= ranges
    kernels = {str(number): (0.0, 1.0) for number in numbers}
    assert {row["span"]: row["count"] for row in rows_of(traced.spans, kernels)} == {
        semconv.CONDITION: 1,
        semconv.DIT: 1,
        semconv.DIT_STEP: 2,
        semconv.VAE_TILE: 1,
    }


def test_a_row_says_how_many_spans_are_within_two_percent_or_fifty_microseconds():
    row = compared("span", [(1.019, 1.0), (1.03, 1.0), (0.001049, 0.001), (0.0012, 0.001)])
    assert row["within_2_percent_or_50_us"] == 2
    assert row["largest_difference_ms"] == pytest.approx(30)


def test_the_99th_percentile_of_few_songs_is_the_slowest():
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0
    assert percentile([float(n) for n in range(1, 101)], 0.99) == 99.0
    assert json.dumps(percentile([1.0], 0.5)) == "1.0"
