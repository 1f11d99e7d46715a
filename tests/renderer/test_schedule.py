"""The schedule: any number of steps on any model, and the tables that turbo models were distilled on."""

from __future__ import annotations

import pytest
import torch
from diffusers import AceStepPipeline
from hypothesis import given
from hypothesis import strategies as st

from acestep.errors import InvalidRequest
from acestep.renderer.schedule import make_schedule


@pytest.mark.parametrize(
    ("shift", "table"),
    [
        (1.0, (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)),
        (2.0, (1.0, 14 / 15, 6 / 7, 10 / 13, 2 / 3, 6 / 11, 0.4, 2 / 9)),
        (3.0, (1.0, 21 / 22, 0.9, 5 / 6, 0.75, 9 / 14, 0.5, 0.3)),
    ],
)
def test_eight_steps_are_the_tables_of_the_turbo_models(shift, table):
    assert make_schedule(8, shift).timesteps == pytest.approx(table, abs=1e-12)


@given(st.integers(1, 300), st.floats(0.1, 10.0))
def test_times_fall_from_one_to_zero_in_as_many_steps_as_asked(steps, shift):
    schedule = make_schedule(steps, shift)
    assert len(schedule.timesteps) == steps
    assert schedule.timesteps[0] == pytest.approx(1.0)
    assert all(start > end for start, end in schedule.intervals)
    assert schedule.intervals[-1][1] == 0.0
    assert sum(start - end for start, end in schedule.intervals) == pytest.approx(1.0)


@given(st.integers(1, 100), st.floats(0.5, 5.0))
def test_times_equal_those_of_diffusers(steps, shift):
    theirs = AceStepPipeline._get_timestep_schedule(None, steps, shift, dtype=torch.float64)
    assert make_schedule(steps, shift).timesteps == pytest.approx(theirs.tolist(), abs=1e-9)


@given(st.integers(2, 100), st.floats(1.1, 10.0))
def test_a_larger_shift_spends_more_steps_near_the_noise(steps, shift):
    plain, shifted = make_schedule(steps, 1.0).timesteps, make_schedule(steps, shift).timesteps
    assert all(late > early for early, late in zip(plain[1:], shifted[1:], strict=True))


@pytest.mark.parametrize("steps", [0, -1])
def test_a_schedule_without_steps_is_refused(steps):
    with pytest.raises(InvalidRequest, match=f"1 or more, not {steps}"):
        make_schedule(steps, 1.0)


@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan"), float("inf")])
def test_a_shift_that_is_not_above_zero_is_refused(shift):
    with pytest.raises(InvalidRequest, match=f"above 0, not {shift}"):
        make_schedule(8, shift)
