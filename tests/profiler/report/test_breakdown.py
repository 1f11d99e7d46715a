"""Rows of the breakdown: their definitions, and that they sum (R149 ... R156)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep_otel import semconv
from acestep_otel.profiler.report.breakdown import Breakdown
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
    children = breakdown.token_generation, breakdown.constrained_decoding, breakdown.guidance or 0
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


def test_a_run_of_no_length_has_no_shares() -> None:
    assert Breakdown(wall=0.0).share(0.0) == 0.0
