"""Summaries of rows: minimum cards, largest batches, and results that are not monotone (R87, R94)."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from acestep.types import Placement
from acestep_otel.profiler.tier_test.boundary import Capability, LargestBatch, batch_boundary, boundary
from acestep_otel.profiler.tier_test.trials import TierResult
from tests.profiler.tier_test.tier_rows import observation, row, trial

CARDS = (4, 6, 8, 12, 16, 20, 24)
LIMITS = {"tier4": (4, 2), "tier1": (1, 1)}
outcomes = st.lists(st.booleans(), max_size=len(CARDS))


def tried(passes: list[bool]) -> tuple[TierResult, ...]:
    return tuple(
        row(card, "no-quant", "ok" if passed else "out_of_memory") for card, passed in zip(CARDS, passes, strict=False)
    )


@given(outcomes)
def test_every_card_from_the_minimum_on_passes_and_the_one_below_it_does_not(passes: list[bool]) -> None:
    rows = tried(passes)
    minimum = Capability("any", rows).minimum
    if minimum is None:
        assert not rows or not rows[-1].passed
        return
    position = rows.index(minimum)
    assert all(result.passed for result in rows[position:])
    assert position == 0 or not rows[position - 1].passed


@given(outcomes)
def test_passes_below_a_failure_are_listed_and_none_means_monotone(passes: list[bool]) -> None:
    capability = Capability("any", tried(passes))
    listed = capability.below_a_failure
    assert all(result.passed for result in listed)
    assert bool(listed) == (passes != sorted(passes))


@given(outcomes)
def test_the_highest_failure_has_only_passes_above_it(passes: list[bool]) -> None:
    rows = tried(passes)
    failure = Capability("any", rows).highest_failure
    assert (failure is None) == all(passes)
    if failure is not None:
        assert all(result.passed for result in rows[rows.index(failure) + 1 :])


def test_defaults_count_where_they_already_do_without() -> None:
    """R87: a tier that neither quantises nor offloads has shown both by its default."""
    rows = [row(8), row(8, "no-quant", "out_of_memory"), row(8, "no-offload", "out_of_memory"), row(20)]
    quantisation, offload = boundary(rows)
    assert [result.trial.memory for result in quantisation.tried] == [8, 20]
    assert [result.trial.memory for result in offload.tried] == [8, 20]
    assert quantisation.minimum is not None
    assert quantisation.minimum.trial.tier == "tier6b"


def test_offload_without_quantisation_reports_quantisation_only() -> None:
    offloaded = row(8, placement=Placement(offload_to_cpu=True))
    quantisation, offload = boundary([offloaded])
    assert quantisation.tried == (offloaded,)
    assert offload.tried == ()


def test_rows_that_were_skipped_or_are_about_batches_tell_nothing() -> None:
    bare = Placement()
    rows = [row(8, "no-quant", "skipped"), row(8, "batch-noLM", placement=bare)]
    assert all(capability.tried == () for capability in boundary(rows))


def test_the_boundary_has_figures() -> None:
    rows = [row(8, "no-quant", "out_of_memory"), row(12, "no-quant", peak=6.25)]
    assert boundary(rows)[0].to_json() == {
        "capability": "No INT8 Quantization",
        "minimum_tier": "tier5",
        "minimum_gb": 12,
        "peak_vram_gb": 6.25,
        "highest_failure_gb": 8,
        "passed_below_a_failure_gb": [],
        "tried": [{"tier_gb": 8, "status": "out_of_memory"}, {"tier_gb": 12, "status": "ok"}],
    }


def batches(passes: list[bool], kind: str = "batch-noLM") -> list[TierResult]:
    return [
        row(8, kind, "ok" if passed else "out_of_memory", batch_size=size)  # type: ignore[arg-type]
        for size, passed in zip((1, 2, 4, 8), passes, strict=False)
    ]


@given(st.lists(st.booleans(), max_size=4))
def test_the_largest_batch_has_no_failure_below_it(passes: list[bool]) -> None:
    largest = LargestBatch(4, tuple(batches(passes)))
    if not passes:
        assert largest.batch_size is None
        return
    leading = passes.index(False) if False in passes else len(passes)
    assert largest.batch_size == (0, 1, 2, 4, 8)[leading]
    assert len(largest.above_a_failure) == sum(passes) - leading


def test_with_and_without_the_language_model_are_apart() -> None:
    """R92, R94."""
    (card,) = batch_boundary([*batches([True, True, False]), *batches([True, False], "batch-LM")], LIMITS)
    assert (card.without_lm.batch_size, card.with_lm.batch_size) == (2, 1)
    assert card.recommendation == "no_lm: 4→2, lm: 2→1"


def test_what_was_not_tried_changes_no_limit() -> None:
    (card,) = batch_boundary([row(4, "batch-noLM"), row(4, "batch-LM", "skipped")], LIMITS)
    assert (card.without_lm.batch_size, card.with_lm.batch_size) == (1, None)
    assert card.recommendation == "OK"


def test_rows_without_a_cap_recommend_nothing() -> None:
    asked = trial(8, "batch-noLM", batch_size=8)
    free = TierResult(asked, "ok", None, replace(observation(asked, 3.0), cap=None))
    (card,) = batch_boundary([free], LIMITS)
    assert card.recommendation == "none: cap not enforced"


def test_other_rows_are_no_batches() -> None:
    assert batch_boundary([row(8), row(8, "no-quant")], LIMITS) == ()
