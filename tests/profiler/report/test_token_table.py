"""The table of ``--llm-debug``: computed from spans, one column per phase (R118, R157)."""

from __future__ import annotations

import pytest

from acestep_otel import semconv
from acestep_otel.profiler.report.statistics import token_statistics
from acestep_otel.profiler.report.terminal import render_token_statistics
from tests.profiler.report.recorded import run_of, span

TABLE = """\
LLM DEBUG
====================================================================================================
  Phase                                      lm.cot      lm.codes
  ───────────────────────────────────────────────────────────────
  Duration (s)                                 0.50          2.40
  Prompt tokens                                 120           165
    └─ Reused                                     0           115
  Output tokens                                  40           150
    ├─ Sampled                                   30           150
    └─ Forced                                    10             0
  Forced share                                25.0%          0.0%
  Unconditional tokens                            0           183
  Forward passes                                 30           150
  Time to first token (ms)                    40.00         60.00
  Tokens/sec                                   80.0          62.5
    ├─ Prefill                               4000.0        2500.0
    └─ Decode                                  88.5          64.1
  Gap between passes, p50 (ms)                11.00         15.50
  Gap between passes, p95 (ms)                12.00         16.00
  Gap between passes, max (ms)                30.25             —
    └─ ended in pass                              7             —
  ───────────────────────────────────────────────────────────────"""


def test_every_figure_is_that_of_its_span() -> None:
    root = span(semconv.GENERATE_MUSIC, 0, 4)
    planner = span(semconv.LM, 0, 3, root)
    cot = {
        semconv.USAGE_INPUT_TOKENS: 120,
        semconv.USAGE_CACHE_READ_INPUT_TOKENS: 0,
        semconv.USAGE_OUTPUT_TOKENS: 40,
        semconv.LM_SAMPLED_TOKENS: 30,
        semconv.LM_FORCED_TOKENS: 10,
        semconv.LM_UNCONDITIONAL_TOKENS: 0,
        semconv.LM_FORWARDS: 30,
        semconv.LM_TIME_TO_FIRST_TOKEN: 0.04,
        semconv.LM_PREFILL_DURATION: 0.03,
        semconv.LM_TOKENS_PER_SECOND: 88.5,
        semconv.LM_TOKEN_GAP_P50: 0.011,
        semconv.LM_TOKEN_GAP_P95: 0.012,
        semconv.LM_TOKEN_GAP_MAX: 0.03025,
        semconv.LM_TOKEN_GAP_MAX_INDEX: 7,
    }
    codes = {
        semconv.USAGE_INPUT_TOKENS: 165,
        semconv.USAGE_CACHE_READ_INPUT_TOKENS: 115,
        semconv.USAGE_OUTPUT_TOKENS: 150,
        semconv.LM_SAMPLED_TOKENS: 150,
        semconv.LM_FORCED_TOKENS: 0,
        semconv.LM_UNCONDITIONAL_TOKENS: 183,
        semconv.LM_FORWARDS: 150,
        semconv.LM_TIME_TO_FIRST_TOKEN: 0.06,
        semconv.LM_PREFILL_DURATION: 0.02,
        semconv.LM_TOKENS_PER_SECOND: 64.1,
        semconv.LM_TOKEN_GAP_P50: 0.0155,
        semconv.LM_TOKEN_GAP_P95: 0.016,
    }
    run = run_of(
        [root, planner, span(semconv.LM_COT, 0, 0.5, planner, cot), span(semconv.LM_CODES, 0.5, 2.4, planner, codes)]
    )
    assert render_token_statistics(token_statistics(run)) == TABLE


def test_a_run_without_language_model_says_so() -> None:
    assert render_token_statistics([]).endswith("\n  The language model was not used.")


def test_a_phase_that_failed_at_once_has_dashes_and_no_division_by_zero() -> None:
    root = span(semconv.CREATE_SAMPLE, 0, 1)
    phase = span(semconv.LM_LYRICS, 0, 0, root, {semconv.USAGE_OUTPUT_TOKENS: 0, semconv.LM_PREFILL_DURATION: 0.0})
    table = render_token_statistics(token_statistics(run_of([root, phase], semconv.CREATE_SAMPLE)))
    assert "  Tokens/sec                                      —" in table
    assert "  Forced share                                    —" in table


@pytest.mark.parametrize("name", [semconv.LM_COT, semconv.LM_CODES, semconv.LM_LYRICS])
def test_every_phase_has_its_statistics(name: str) -> None:
    root = span(semconv.GENERATE_MUSIC, 0, 1)
    (statistics,) = token_statistics(run_of([root, span(name, 0, 1, root)]))
    assert statistics.phase == name.removeprefix("acestep.")
