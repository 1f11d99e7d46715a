"""Rows of the breakdown: their definitions, and that they sum (R149 ... R156)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep_otel import semconv
from acestep_otel.profiler.report.breakdown import Breakdown, breakdown_rows
from acestep_otel.profiler.report.spans import Preparation
from acestep_otel.profiler.report.terminal import render_breakdown
from tests.profiler.report.recorded import guide_spans, run_of, span

seconds = st.floats(0, 1000).map(lambda value: round(value, 6))


def test_every_row_comes_from_its_span() -> None:
    breakdown = Breakdown.of(run_of(guide_spans()))
    assert breakdown == Breakdown(
        wall=pytest.approx(6.429),
        planner=pytest.approx(2.909),
        constrained_decoding=0.31,
        guidance=0.149,
        diffusion=pytest.approx(1.89),
        steps=8,
        vae_decode=pytest.approx(0.52),
        audio_save=pytest.approx(0.12),
    )
    assert breakdown.token_generation == pytest.approx(2.45)
    assert breakdown.step_average == pytest.approx(1.89 / 8)
    assert breakdown.other == pytest.approx(0.99)


@given(planner=seconds, shares=st.tuples(st.floats(0, 1), st.floats(0, 1)), rest=st.tuples(*[seconds] * 4))
def test_rows_sum_to_wall_time_and_planner_rows_to_the_planner(
    planner: float, shares: tuple[float, float], rest: tuple[float, float, float, float]
) -> None:
    """R151."""
    diffusion, vae, save, other = rest
    root = span(semconv.GENERATE_MUSIC, 0, planner + diffusion + vae + save + other)
    constrained = planner * shares[0] / 2
    guidance = planner * shares[1] / 2
    attributes = {semconv.LM_CONSTRAINED_DECODING_DURATION: constrained, semconv.LM_CFG_DURATION: guidance}
    breakdown = Breakdown.of(
        run_of(
            [
                root,
                span(semconv.LM, 0, planner, root, attributes),
                span(semconv.DIT, planner, diffusion, root),
                span(semconv.VAE_DECODE, planner + diffusion, vae, root),
                span(semconv.AUDIO_SAVE, planner + diffusion + vae, save, root),
            ]
        )
    )
    rows = breakdown.planner, breakdown.diffusion, breakdown.vae_decode, breakdown.audio_save, breakdown.other
    assert sum(rows) == pytest.approx(breakdown.wall, abs=1e-9)
    assert breakdown.other == pytest.approx(other, abs=1e-6)
    children = breakdown.token_generation, breakdown.constrained_decoding or 0, breakdown.guidance or 0
    assert sum(children) == pytest.approx(breakdown.planner, abs=1e-9)
    assert breakdown.token_generation >= -1e-9


def test_stages_that_did_not_run_take_no_time() -> None:
    breakdown = Breakdown.of(run_of([span(semconv.GENERATE_MUSIC, 0, 2.0)]))
    assert breakdown == Breakdown(wall=2.0)
    assert breakdown.other == 2.0
    assert breakdown.step_average is None


def test_guidance_that_was_not_calibrated_is_absent_and_inside_token_generation() -> None:
    root = span(semconv.GENERATE_MUSIC, 0, 3.0)
    planner = span(semconv.LM, 0, 2.0, root, {semconv.LM_CONSTRAINED_DECODING_DURATION: 0.5})
    breakdown = Breakdown.of(run_of([root, planner]))
    assert breakdown.guidance is None
    assert breakdown.token_generation == pytest.approx(1.5)


def test_steps_are_counted_when_the_loop_failed_before_it_said_how_many() -> None:
    root = span(semconv.GENERATE_MUSIC, 0, 3.0, status="error", error="OutOfMemory")
    dit = span(semconv.DIT, 0, 1.0, root, status="error", error="OutOfMemory")
    breakdown = Breakdown.of(run_of([root, dit, *(span(semconv.DIT_STEP, n / 4, 0.25, dit) for n in range(3))]))
    assert breakdown.steps == 3
    assert breakdown.step_average == pytest.approx(1 / 3)


def test_a_figure_that_no_span_states_is_unknown_and_no_zero() -> None:
    root = span(semconv.GENERATE_MUSIC, 0, 4.0)
    planner = span(semconv.LM, 0, 2.0, root, {semconv.LM_CFG_DURATION: 0.5})
    breakdown = Breakdown.of(run_of([root, planner, span(semconv.DIT, 2, 1.5, root)]))
    assert (breakdown.constrained_decoding, breakdown.steps, breakdown.step_average) == (None, None, None)
    assert breakdown.token_generation == pytest.approx(1.5)
    rows = {row.component: (row.value, row.percent) for row in breakdown_rows(breakdown)}
    assert rows["constrained_decoding"] == rows["steps"] == rows["step_average"] == (None, None)
    assert "Constrained decoding          —" in render_breakdown(breakdown)
    assert "Steps                         —" in render_breakdown(breakdown)


@given(st.lists(st.tuples(st.none() | st.integers(0, 50), st.integers(0, 4)), max_size=4))
def test_steps_are_those_stated_else_those_seen_and_unknown_where_there_is_neither(
    loops: list[tuple[int | None, int]],
) -> None:
    root = span(semconv.GENERATE_MUSIC, 0, 10.0)
    spans = [root]
    for index, (stated, seen) in enumerate(loops):
        attributes = {} if stated is None else {semconv.DIT_STEPS: stated}
        loop = span(semconv.DIT, 2 * index, 1.0, root, attributes)
        spans += [loop, *(span(semconv.DIT_STEP, 2 * index + n / 4, 0.25, loop) for n in range(seen))]
    counts = [seen or None if stated is None else stated for stated, seen in loops]
    assert Breakdown.of(run_of(spans)).steps == (None if None in counts else sum(filter(None, counts)))


def test_loading_and_warm_ups_are_what_came_before_the_run() -> None:
    load = span(semconv.MODEL_LOAD, 0, 3.0)
    warm = span(semconv.GENERATE_MUSIC, 4, 2.0, None, {semconv.WARMUP: True})
    root = span(semconv.GENERATE_MUSIC, 7, 1.0)
    inside = span(semconv.MODEL_LOAD, 7, 0.5, root)
    assert Preparation.of([load, span(semconv.MODEL_LOAD, 3, 0.5), warm, root, inside]) == Preparation(3.5, 2.0)
    assert Preparation.of([root, inside]) == Preparation(None, None)


def test_a_run_of_no_length_has_no_shares() -> None:
    assert Breakdown(wall=0.0).share(0.0) == 0.0
