"""Adaptive Projected Guidance: what it adds, when it is on, and that no state leaks between requests."""

from __future__ import annotations

import pytest
import torch
from diffusers import AceStepPipeline
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from hypothesis import given
from hypothesis import strategies as st

from acestep.renderer.diffusion import AdaptiveProjectedGuidance, Guidance, make_schedule


def predictions(seed: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    conditional = torch.randn(2, 40, 3, generator=generator)
    return conditional, conditional - scale * torch.randn(2, 40, 3, generator=generator)


@given(st.integers(0, 10_000), st.floats(1.5, 15.0), st.sampled_from([0.01, 0.3, 5.0]))
def test_several_steps_equal_those_of_diffusers(seed, scale, difference):
    ours, momentum = AdaptiveProjectedGuidance(scale), MomentumBuffer(-0.75)
    for step in range(4):
        conditional, unconditional = predictions(seed + step, difference)
        theirs = normalized_guidance(
            conditional,
            unconditional,
            guidance_scale=scale - 1.0,
            momentum_buffer=momentum,
            eta=0.0,
            norm_threshold=2.5,
            use_original_formulation=True,
            norm_dim=(1,),
        )
        assert torch.allclose(ours.combine(conditional, unconditional), theirs, atol=1e-4, rtol=1e-4)


def test_what_is_added_is_orthogonal_to_the_conditional_prediction_over_time():
    conditional, unconditional = predictions(0)
    added = AdaptiveProjectedGuidance(7.0).combine(conditional, unconditional) - conditional
    cosine = torch.nn.functional.cosine_similarity(added, conditional, dim=1)
    assert added.abs().max() > 0.1
    assert cosine.abs().max() < 1e-5


def test_equal_predictions_leave_the_velocity_as_it_is():
    conditional, _ = predictions(0)
    assert torch.equal(AdaptiveProjectedGuidance(7.0).combine(conditional, conditional), conditional)


def test_the_state_belongs_to_one_request():
    first, second = AdaptiveProjectedGuidance(7.0), AdaptiveProjectedGuidance(7.0)
    first.combine(*predictions(1))
    repeated = first.combine(*predictions(2))
    fresh = second.combine(*predictions(2))
    assert not torch.allclose(repeated, fresh)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_the_interval_is_one_of_t_with_both_ends_included(a, b, t):
    start, end = sorted((a, b))
    guidance = Guidance(7.0, (start, end))
    assert guidance.applies_at(t) == (start <= t <= end)
    assert guidance.applies_at(start)
    assert guidance.applies_at(end)


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
    assert all(step.timestep > step.next_timestep for step in schedule.steps)
    assert schedule.steps[-1].next_timestep == 0.0
    assert sum(step.timestep - step.next_timestep for step in schedule.steps) == pytest.approx(1.0)


@given(st.integers(1, 100), st.floats(0.5, 5.0))
def test_times_equal_those_of_diffusers(steps, shift):
    theirs = AceStepPipeline._get_timestep_schedule(None, steps, shift, dtype=torch.float64)
    assert make_schedule(steps, shift).timesteps == pytest.approx(theirs.tolist(), abs=1e-9)


@given(st.integers(2, 100), st.floats(1.1, 10.0))
def test_a_larger_shift_spends_more_steps_near_the_noise(steps, shift):
    plain, shifted = make_schedule(steps, 1.0).timesteps, make_schedule(steps, shift).timesteps
    assert all(late > early for early, late in zip(plain[1:], shifted[1:], strict=True))
