"""Kernels are matched to the range that launched them, and ranges to spans; the GPU itself is not needed for that."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.metrics import NoOpMeter
from torch.profiler import ProfilerActivity, profile

from acestep.inference import generate_music
from acestep.types import GenerationRequest
from acestep_otel import semconv
from acestep_otel.patches import engine
from acestep_otel.patches.patcher import Patcher
from acestep_otel.recording.request_tracer import RequestTracer
from acestep_otel.settings import Settings
from benchmarks.device_clock import NUMBER, RANGE, RangedTracer, compared, require_agreement, rows_of
from benchmarks.gpu_timeline import RangeIntervals, device_intervals, load_events, synchronisations
from benchmarks.overhead import percentile
from tests.tracing import Traced


def event(cat, name, start, duration, thread=1, **arguments):
    return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": duration, "tid": thread, "args": arguments}


def annotation(name, start, end, thread=1):
    return event("user_annotation", f"range-{name}", start, end - start, thread)


def launch(time, correlation, thread=1):
    return event("cuda_runtime", "cudaLaunchKernel", time, 5, thread, correlation=correlation)


def work(start, end, correlation, stream=7, device=0, kind="kernel"):
    return event(kind, "k", start, end - start, stream, correlation=correlation, device=device, stream=stream)


def microseconds(interval):
    return tuple(round(moment * 1e6) for moment in interval)


def lasting(seconds):
    return RangeIntervals(work=(0.0, seconds), stream=(0.0, seconds))


def of_one_range(events, opened=100, closed=200):
    """The work and the stream interval of a range of thread 1."""
    found = device_intervals([annotation("it", opened, closed), *events], "range-")["it"]
    return microseconds(found.work), microseconds(found.stream)


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
    work(1_000, 1_010, correlation=1),
    work(1_050, 1_060, correlation=2, stream=8, kind="gpu_memcpy"),
    # Both are of the replayed graph.
    work(1_100, 1_110, correlation=3),
    work(1_120, 1_130, correlation=3),
    work(1_200, 1_210, correlation=4, stream=9),
    # Outside of all ranges.
    work(1_300, 1_310, correlation=5),
    {"ph": "i", "cat": "kernel", "name": "no interval", "ts": 1, "args": {"correlation": 1}},
]


def test_work_belongs_to_the_range_whose_thread_launched_it():
    found = device_intervals(EVENTS, "range-")
    assert {name: microseconds(intervals.work) for name, intervals in found.items()} == {
        "a": (1_000, 1_060),
        "b": (1_100, 1_130),
        "other thread": (1_200, 1_210),
    }


def test_a_range_that_launched_no_work_is_absent():
    waits_only = [annotation("it", 100, 200), launch(90, 1), work(120, 180, 1), launch(150, 2)]
    assert device_intervals(waits_only, "range-") == {}


def test_idle_time_before_the_first_kernel_is_stream_time():
    assert of_one_range([launch(150, 1), work(160, 300, 1)]) == ((160, 300), (100, 300))


@pytest.mark.parametrize("thread", [1, 2])
def test_earlier_work_on_the_stream_delays_the_start(thread):
    earlier = [launch(50, 1, thread), work(60, 140, 1)]
    assert of_one_range([*earlier, launch(150, 2), work(160, 300, 2)]) == ((160, 300), (140, 300))


def test_earlier_work_that_was_done_before_the_range_opened_delays_nothing():
    assert of_one_range([launch(50, 1), work(60, 90, 1), launch(150, 2), work(160, 300, 2)]) == ((160, 300), (100, 300))


@pytest.mark.parametrize("elsewhere", [{"stream": 8}, {"device": 1}])
def test_work_on_another_stream_delays_neither_end(elsewhere):
    others = [launch(50, 1, thread=2), work(60, 900, 1, **elsewhere)]
    assert of_one_range([*others, launch(150, 2), work(160, 300, 2)]) == ((160, 300), (100, 300))


def test_work_that_another_thread_launched_after_the_opening_does_not_delay_the_start():
    others = [launch(110, 1, thread=2), work(120, 150, 1)]
    assert of_one_range([*others, launch(130, 2), work(150, 300, 2)]) == ((150, 300), (100, 300))


def test_the_start_waits_for_the_stream_of_the_first_launch_only():
    others = [launch(50, 1, thread=2), work(60, 180, 1, stream=8)]
    own = [launch(110, 2), work(120, 150, 2), launch(130, 3), work(180, 300, 3, stream=8)]
    assert of_one_range([*others, *own]) == ((120, 300), (100, 300))


def test_of_two_threads_launches_the_one_that_is_done_last_counts():
    """Calls of two threads overlap, so the one that began first may be the second to reach the stream."""
    earlier = [launch(50, 1, thread=2), work(90, 140, 1), launch(52, 2, thread=3), work(60, 90, 2)]
    assert of_one_range([*earlier, launch(150, 3), work(160, 300, 3)]) == ((160, 300), (140, 300))


def test_a_graph_with_branches_starts_when_the_last_of_its_streams_is_free():
    earlier = [launch(50, 1), work(60, 120, 1, stream=7), launch(55, 2), work(60, 140, 2, stream=8)]
    branches = [work(125, 300, 3, stream=7), work(145, 250, 3, stream=8)]
    assert of_one_range([*earlier, launch(110, 3), *branches]) == ((125, 300), (140, 300))


def test_where_the_device_is_done_first_the_stream_interval_ends_with_the_range():
    assert of_one_range([launch(110, 1), work(120, 150, 1)]) == ((120, 150), (100, 200))


def test_where_the_host_is_done_first_the_stream_interval_ends_with_the_work():
    assert of_one_range([launch(110, 1), work(120, 900, 1)]) == ((120, 900), (100, 900))


def test_work_of_others_on_the_stream_delays_the_end_when_it_was_launched_before_the_closing():
    own = [launch(110, 1), work(120, 150, 1)]
    assert of_one_range([*own, launch(199, 2, thread=2), work(205, 400, 2)]) == ((120, 150), (100, 400))
    assert of_one_range([*own, launch(201, 2, thread=2), work(205, 400, 2)]) == ((120, 150), (100, 200))


def test_the_range_s_own_work_on_a_second_stream_is_waited_for():
    second = [launch(120, 2), work(130, 500, 2, stream=8)]
    assert of_one_range([launch(110, 1), work(120, 150, 1), *second]) == ((120, 500), (100, 500))


@given(
    st.dictionaries(st.integers(1, 399), st.tuples(st.sampled_from([7, 8]), st.integers(1, 200))),
    st.integers(101, 199),
)
def test_the_stream_interval_is_between_events_at_the_ends_of_the_range(launches, own):
    """Against a simulation of two streams, one for each thread, that do in order what they are given."""
    free, events, reached = {7: 0, 8: 0}, [], []
    for time, (stream, duration) in sorted({**launches, own: (7, 10), 100: (7, 0), 200: (7, 0)}.items()):
        start = max(time, free[stream])
        free[stream] = start + duration
        if duration:
            events += [launch(time, time, thread=stream - 6), work(start, free[stream], time, stream)]
        else:
            reached.append(start)
    assert of_one_range(events)[1] == tuple(reached)


def test_idle_is_what_the_stream_interval_has_beyond_the_work_at_either_end():
    assert RangeIntervals(work=(3.0, 8.0), stream=(1.0, 9.0)).idle_seconds == pytest.approx(3)
    # A second stream may begin before the first one is free.
    assert RangeIntervals(work=(1.0, 8.0), stream=(3.0, 9.0)).idle_seconds == pytest.approx(1)


def test_waits_are_counted_by_their_call():
    assert synchronisations(EVENTS) == {
        "cudaStreamSynchronize": 1,
        "cudaDeviceSynchronize": 0,
        "cudaEventSynchronize": 0,
    }


def test_every_span_finds_its_own_range(tiny_models, tmp_path):
    traced = Traced()
    tracer = RangedTracer(traced.tracer_provider.get_tracer("test"), NoOpMeter("test"), Settings(), "run")
    assert isinstance(tracer, RequestTracer)
    patcher = Patcher(tracer)
    patcher.apply(engine.PATCHES)
    try:
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            generate_music(tiny_models, GenerationRequest(caption="x", duration=10, seeds=(1,), inference_steps=2))
    finally:
        patcher.remove()
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    annotated = {e["name"] for e in load_events(tmp_path / "trace.json") if e.get("cat") == "user_annotation"}
    numbers = [span.attributes[NUMBER] for span in traced.spans if span.parent is not None]
    assert len(numbers) == len(set(numbers)) == 6
    assert {f"{RANGE}{number}" for number in numbers} <= annotated
    ranges = {str(number): lasting(1.0) for number in numbers}
    assert {row["span"]: row["count"] for row in rows_of(traced.spans, ranges)} == {
        semconv.CONDITION: 1,
        semconv.DIT: 1,
        semconv.DIT_STEP: 2,
        semconv.VAE_TILE: 1,
    }


def test_a_row_says_how_many_spans_are_within_two_percent_or_fifty_microseconds():
    pairs = [(1.019, lasting(1.0)), (1.03, lasting(1.0)), (0.001049, lasting(0.001)), (0.0012, lasting(0.001))]
    row = compared("span", pairs)
    assert row["within_2_percent_or_50_us"] == 2
    assert row["largest_difference_ms"] == pytest.approx(30)


def test_a_row_judges_by_the_stream_interval_and_shows_the_idle_time_beside_it():
    row = compared("span", [(10.0, RangeIntervals(work=(2.0, 9.0), stream=(0.0, 10.0)))])
    assert row["within_2_percent_or_50_us"] == 1
    assert row["span_to_stream_ratio"] == pytest.approx(1)
    assert (row["profiler_stream_seconds"], row["profiler_work_seconds"]) == (10, 7)
    assert row["idle_share_of_span"] == pytest.approx(0.3)


def test_the_command_fails_when_a_single_span_is_beyond_the_tolerance():
    good, bad = compared("good", [(1.0, lasting(1.0))]), compared("bad", [(1.0, lasting(1.0)), (1.03, lasting(1.0))])
    require_agreement([good])
    # Python exits with 1 and prints a code that is a text.
    with pytest.raises(SystemExit, match=r"stream interval: bad$"):
        require_agreement([good, bad])


def test_the_command_fails_when_nothing_was_compared():
    with pytest.raises(SystemExit, match="nothing was compared"):
        require_agreement([])


def test_the_99th_percentile_of_few_songs_is_the_slowest():
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0
    assert percentile([float(n) for n in range(1, 101)], 0.99) == 99.0
    assert json.dumps(percentile([1.0], 0.5)) == "1.0"
