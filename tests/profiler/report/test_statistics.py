"""Token statistics, step and tile times and memory peaks come from the spans that have them."""

from __future__ import annotations

import pytest

from acestep_otel import semconv
from acestep_otel.profiler.report.statistics import MemoryPeak, memory_peaks, step_times, tile_times, token_statistics
from tests.profiler.report.recorded import guide_spans, run_of, span


def test_step_and_tile_times_are_in_order() -> None:
    run = run_of(guide_spans())
    assert step_times(run) == pytest.approx([0.22 + index / 1000 for index in range(8)])
    assert tile_times(run) == pytest.approx([0.2, 0.2])


def test_token_statistics_are_read_per_phase() -> None:
    cot, codes = token_statistics(run_of(guide_spans()))
    assert (cot.phase, codes.phase) == ("lm.cot", "lm.codes")
    assert (cot.prompt_tokens, cot.output_tokens, cot.forced_tokens) == (120, 40, 10)
    assert cot.tokens_per_second == 88.5
    assert cot.duration == pytest.approx(0.5)
    assert codes.cfg_duration == 0.149
    assert codes.time_to_first_token is None


def test_a_prompts_rate_is_unknown_where_nothing_says_how_much_of_it_was_reused() -> None:
    root = span(semconv.GENERATE_MUSIC, 0, 2.0)
    known = {semconv.USAGE_INPUT_TOKENS: 100, semconv.LM_PREFILL_DURATION: 0.5}
    reused = {**known, semconv.USAGE_CACHE_READ_INPUT_TOKENS: 40}
    spans = [root, span(semconv.LM_COT, 0, 1.0, root, known), span(semconv.LM_CODES, 1, 1.0, root, reused)]
    unknown, rate = (phase.prefill_tokens_per_second for phase in token_statistics(run_of(spans)))
    assert (unknown, rate) == (None, 120)


def test_a_run_without_planner_has_no_token_statistics() -> None:
    assert token_statistics(run_of([span(semconv.GENERATE_MUSIC, 0, 1)])) == []


def test_memory_peaks_are_listed_where_they_were_recorded() -> None:
    root = span(semconv.GENERATE_MUSIC, 0, 2)
    peak = {semconv.VRAM_PEAK_ALLOCATED: 3 << 30, semconv.VRAM_PEAK_RESERVED: 4 << 30}
    run = run_of([root, span(semconv.DIT, 0, 1, root, peak), span(semconv.AUDIO_SAVE, 1, 1, root)])
    assert memory_peaks(run) == [MemoryPeak("dit", 3 << 30, 4 << 30)]
