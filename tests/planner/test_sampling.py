from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep.planner.sampling import item_keys, keep_top_p, sample
from acestep.types import SamplingSettings

PLAIN = SamplingSettings(temperature=1.0, top_k=0, top_p=1.0)
DRAWS = 4000


def shares(probabilities: list[float], settings: SamplingSettings) -> list[float]:
    """How often each token is drawn."""
    logits = torch.tensor([probabilities]).log().expand(DRAWS, -1)
    drawn = sample(logits, settings, item_keys(0, "test", DRAWS))
    return (drawn.bincount(minlength=len(probabilities)) / DRAWS).tolist()


def drawable(logits: torch.Tensor, settings: SamplingSettings) -> set[int]:
    return set(sample(logits.expand(DRAWS, -1), settings, item_keys(0, "test", DRAWS)).tolist())


def nucleus_by_sorting(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """The rule itself: sorted by probability, keep while the sum before a token is at most ``top_p``."""
    probabilities, order = logits.double().softmax(-1).sort(descending=True, stable=True)
    kept = probabilities.cumsum(-1) - probabilities <= top_p
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, kept)


def test_zero_temperature_takes_the_most_probable_token() -> None:
    logits = torch.randn(4, 100)
    drawn = sample(logits, replace(PLAIN, temperature=0), item_keys(0, "test", 4))
    assert torch.equal(drawn, logits.argmax(-1))


def test_draws_follow_the_distribution() -> None:
    assert shares([0.5, 0.2, 0.3], PLAIN) == pytest.approx([0.5, 0.2, 0.3], abs=0.03)


def test_draws_from_the_whole_code_vocabulary_are_even() -> None:
    drawn = sample(torch.zeros(200, 64_000), PLAIN, item_keys(1, "test", 200))
    assert 190 <= len(set(drawn.tolist())) <= 200
    assert drawn.double().mean() == pytest.approx(32_000, abs=5 * 64_000 / (12 * 200) ** 0.5)


@pytest.mark.parametrize(("temperature", "expected"), [(0.5, 0.36 / 0.52), (1.0, 0.6), (2.0, 0.5505)])
def test_temperature_sharpens_and_flattens(temperature: float, expected: float) -> None:
    assert shares([0.6, 0.4], replace(PLAIN, temperature=temperature))[0] == pytest.approx(expected, abs=0.03)


def test_top_k_keeps_ties() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 2.0, 0.0]])
    assert drawable(logits, replace(PLAIN, top_k=2)) == {0, 2, 3}
    assert drawable(logits, replace(PLAIN, top_k=0)) == {0, 1, 2, 3, 4}
    assert drawable(logits, replace(PLAIN, top_k=5)) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(("top_p", "kept"), [(0.0, {1}), (0.4, {1}), (0.6, {1, 2}), (0.9, {0, 1, 2}), (1.0, {0, 1, 2})])
def test_top_p_counts_what_comes_before_a_token(top_p: float, kept: set[int]) -> None:
    logits = torch.tensor([[0.2, 0.5, 0.3]]).log()
    assert drawable(logits, replace(PLAIN, top_p=top_p)) == kept


def test_b1_top_p_uses_the_untempered_distribution() -> None:
    """In the reference's fast backend top-p is without effect; on a tempered distribution, heat would widen it."""
    logits = torch.tensor([[0.7, 0.2, 0.1]]).log()
    assert drawable(logits, replace(PLAIN, top_p=0.6, temperature=2.0)) == {0}


@settings(deadline=None)
@given(
    st.integers(0, 10_000),
    st.floats(0.0, 0.999),
    st.sampled_from([0.1, 1.0, 3.0, 10.0]),
    st.sampled_from([2, 10, 1000, 64_000]),
)
def test_the_nucleus_is_that_of_a_sort(seed: int, top_p: float, spread: float, size: int) -> None:
    logits = torch.randn(2, size, generator=torch.Generator().manual_seed(seed)) * spread
    different = keep_top_p(logits, top_p).isfinite() != nucleus_by_sorting(logits, top_p)
    # Float32 sums may move the edge by a token or two of negligible probability.
    assert float((logits.double().softmax(-1) * different).sum(-1).max()) < 2e-5
    assert different.sum() <= 8


@pytest.mark.parametrize("level", [0.0, 10.0, -1000.0, 1e6])
def test_equal_logits_are_kept_together(level: float) -> None:
    assert keep_top_p(torch.full((1, 100), level), 0.5).isfinite().all()


@pytest.mark.parametrize("level", [0.0, 30.0, -1000.0])
def test_the_nucleus_does_not_depend_on_the_level_of_the_logits(level: float) -> None:
    logits = torch.linspace(0, 0.25, 128).unsqueeze(0)
    assert torch.equal(keep_top_p(logits + level, 0.5).isfinite(), nucleus_by_sorting(logits + level, 0.5))


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    for changed in ({}, {"top_p": 0.9}, {"top_k": 4}, {"top_p": 0.999999}, {"top_k": 4, "top_p": 0.9}):
        assert drawable(logits, replace(PLAIN, **changed)) == {1, 3}


def test_not_a_number_stays_within_the_vocabulary() -> None:
    drawn = sample(torch.full((1, 50), torch.nan), SamplingSettings(), item_keys(0, "test", 1))
    assert 0 <= int(drawn) < 50


def test_rows_do_not_look_at_each_other() -> None:
    logits, keys = torch.randn(6, 1000), item_keys(3, "test", 6)
    together = sample(logits, SamplingSettings(top_k=50), keys)
    alone = [int(sample(logits[row : row + 1], SamplingSettings(top_k=50), keys[row : row + 1])) for row in range(6)]
    assert together.tolist() == alone


def test_rounding_elsewhere_does_not_change_a_draw() -> None:
    """Rounding depends on the batch and moves tokens over the edge of the nucleus; the draw must not follow."""
    generator, keys = torch.Generator().manual_seed(0), item_keys(3, "test", 50)
    logits = torch.randn(50, 64_000, generator=generator)
    rounded = logits + torch.randn(50, 64_000, generator=generator) * 1e-6
    assert torch.equal(sample(logits, SamplingSettings(), keys), sample(rounded, SamplingSettings(), keys))


def test_the_noise_is_splitmix64() -> None:
    # The first word of SplitMix64 from 1234567 is 6457827717110365317, so noise 0 is its upper 40 bits.
    first = ((6457827717110365317 >> 24) + 0.5) / 2**40
    second = ((3203168211198807973 >> 24) + 0.5) / 2**40
    clocks = -torch.log1p(-torch.tensor([first, second]))
    # Two tokens: the first rings first when its rate is above the ratio of the clocks.
    edge = float((clocks[0] / clocks[1]).log())
    for offset, expected in ((1e-3, 0), (-1e-3, 1)):
        logits = torch.tensor([[edge + offset, 0.0]])
        assert int(sample(logits, PLAIN, torch.tensor([1234567]))) == expected


def test_keys_belong_to_seed_phase_and_place() -> None:
    keys = item_keys(7, "lm.codes", 100)
    assert torch.equal(keys, item_keys(7, "lm.codes", 100))
    assert torch.equal(keys[:30], item_keys(7, "lm.codes", 30))
    assert not torch.equal(keys, item_keys(8, "lm.codes", 100))
    assert not torch.equal(keys, item_keys(7, "lm.cot", 100))
    assert len(set(keys.tolist())) == 100


def test_b26_the_global_random_state_is_not_changed() -> None:
    """The reference seeds, or does not seed, the process's generator."""
    logits = torch.randn(1, 10)
    before = torch.get_rng_state()
    sample(logits, PLAIN, item_keys(0, "lm.cot", 1))
    assert torch.equal(before, torch.get_rng_state())
