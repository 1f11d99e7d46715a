"""Token times of a planner phase: figures drawn from marks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep_otel.recording.clock import Mark
from acestep_otel.recording.phase import WINDOW_TOKENS, GapSummary, PhaseRecord, PhaseTimes, percentile_95

increasing_times = st.lists(st.integers(0, 10**12), min_size=0, max_size=300).map(sorted)


def resolved(passes: list[int], prefills: list[tuple[int, int]] = ()) -> PhaseTimes:
    record = PhaseRecord([(Mark(a), Mark(b)) for a, b in prefills], [Mark(t) for t in passes], constrained_ns=7_000_000)
    return PhaseTimes.of(record, [mark.host_ns for mark in record.marks])


def test_prefill_is_the_sum_of_all_prompt_forwards():
    times = resolved([50], [(0, 10_000_000), (20_000_000, 25_000_000)])
    assert times.prefill == pytest.approx(0.015)
    assert times.constrained == pytest.approx(0.007)


def test_songs_written_one_after_the_other_do_not_count_their_prompts_as_decoding():
    times = resolved([10, 20, 30, 80, 90], [(0, 10), (40, 80)])
    assert times.decode == pytest.approx((30 - 10 + 10 + 90 - 80) / 1e9)
    assert times.decode_passes == 3
    assert times.gaps == pytest.approx([10e-9, 10e-9, 10e-9])
    assert times.prefill == pytest.approx(50e-9)


def test_what_no_pass_was_seen_of_has_no_duration():
    assert resolved([]).decode is None
    assert resolved([]).prefill is None


def test_seconds_per_token_leaves_out_the_first_token():
    assert resolved([100, 200, 300, 400]).seconds_per_token == pytest.approx(100e-9)
    assert resolved([100]).seconds_per_token is None
    assert resolved([]).seconds_per_token is None


@given(increasing_times)
def test_gaps_sum_to_the_decode_duration(passes):
    times = resolved(passes)
    assert sum(times.gaps) == pytest.approx(times.decode or 0.0)


@given(increasing_times)
def test_windows_cover_every_token_after_the_first_once_and_in_order(passes):
    windows = resolved(passes).windows()
    covered = [index for first, count, _, _ in windows for index in range(first, first + count)]
    assert covered == list(range(1, len(passes)))
    assert all(count <= WINDOW_TOKENS and start <= end for _, count, start, end in windows)
    assert [start for _, _, start, _ in windows[1:]] == [end for _, _, _, end in windows[:-1]]


@given(st.lists(st.floats(0, 100), min_size=1))
def test_gap_summary_is_ordered_and_finds_the_longest(gaps):
    summary = GapSummary.of(gaps)
    assert summary.p50 <= summary.p95 == percentile_95(gaps)
    assert summary.p95 <= summary.maximum == gaps[summary.maximum_index - 1] == max(gaps)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=200))
def test_percentile_95_is_a_value_that_at_least_95_percent_do_not_exceed(values):
    bound = percentile_95(values)
    assert bound in values
    assert sum(value <= bound for value in values) >= 0.95 * len(values)
    assert sum(value < bound for value in values) < 0.95 * len(values) + 1


def test_no_gaps_no_summary():
    assert GapSummary.of([]) is None


@pytest.mark.parametrize(("lag", "waits"), [(0.1, True), (8.0, False)])
def test_a_device_that_is_never_behind_the_host_waits_for_it(lag: float, waits: bool) -> None:
    """Passes every 10 ms; the device is done so many milliseconds after the host had enqueued each."""
    ms = 1_000_000
    record = PhaseRecord([], [Mark(10 * ms * number, event=object()) for number in range(1, 6)])
    offset = 1_700_000_000_000_000_000
    times = PhaseTimes.of(record, [mark.host_ns + offset + round(lag * ms) for mark in record.passes], offset)
    assert times.lag == pytest.approx(lag / 1e3)
    assert times.waits_for_host is waits


def test_on_the_hosts_clock_there_is_no_lag() -> None:
    record = PhaseRecord([], [Mark(number) for number in range(5)])
    times = PhaseTimes.of(record, [mark.host_ns for mark in record.passes])
    assert times.lag is None
    assert not times.waits_for_host
