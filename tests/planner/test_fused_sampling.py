"""Tokens drawn in fused kernels, interpreted on the CPU, against the same drawn operation by operation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep.planner.backends import candidates
from acestep.planner.backends.candidates import Candidates, Chooser, choose
from acestep.planner.backends.fused_sampling import drawing, fused_sample
from acestep.planner.sampling import item_keys, sample
from acestep.types import SamplingSettings

CPU = torch.device("cpu")


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(2, 3_000),
    spread=st.sampled_from([0.01, 1.0, 10.0]),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 0.999]),
    temperature=st.sampled_from([0.5, 0.85, 1.5]),
    forbidden=st.floats(0, 0.9),
)
def test_the_same_tokens_are_drawn(seed, count, spread, top_p, temperature, forbidden) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, count, generator=generator) * spread
    # The first of a row is always allowed.
    logits[:, 1:][torch.rand(2, count - 1, generator=generator) < forbidden] = -torch.inf
    asked, keys = SamplingSettings(temperature=temperature, top_p=top_p, top_k=0), item_keys(seed, "lm.codes", 2)
    assert torch.equal(fused_sample(logits, asked, keys), sample(logits, asked, keys))


def test_a_row_is_drawn_as_it_would_be_alone() -> None:
    logits, keys = torch.randn(3, 2_500), item_keys(5, "lm.codes", 3)
    together = fused_sample(logits, SamplingSettings(), keys)
    alone = [fused_sample(logits[row : row + 1], SamplingSettings(), keys[row : row + 1]) for row in range(3)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize(
    "asked",
    [SamplingSettings(temperature=0), SamplingSettings(top_k=5), SamplingSettings(top_p=1.0)],
    ids=["greedy", "top-k", "everything"],
)
def test_other_settings_are_drawn_operation_by_operation(asked: SamplingSettings) -> None:
    logits, keys = torch.randn(2, 500), item_keys(1, "lm.codes", 2)
    assert torch.equal(fused_sample(logits, asked, keys), sample(logits, asked, keys))


def test_only_cuda_draws_in_kernels() -> None:
    assert drawing(CPU) is sample


def test_a_choice_is_the_same_in_kernels(monkeypatch) -> None:
    weights, hidden = torch.randn(700, 16), torch.randn(4, 16)
    keys = item_keys(3, "lm.codes", 2)
    found = Candidates(weights, first=50)
    expected = choose(found, SamplingSettings(), hidden, keys)
    monkeypatch.setattr(candidates, "drawing", lambda _: fused_sample)
    assert torch.equal(Chooser()(found, SamplingSettings(), hidden, keys), expected)
