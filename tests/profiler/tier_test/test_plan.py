"""What a tier test tries (R56 ... R61, R64, R68 ... R75, R80, R81, R83 ... R93, R120 ... R124)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.types import Placement
from acestep_otel.profiler.cli import command
from acestep_otel.profiler.options import Options
from acestep_otel.profiler.tier_test.plan import BATCH_SIZES, Plan
from acestep_otel.profiler.tier_test.trials import Trial


def plan(**options: Any) -> Plan:
    return Plan.of(Options(mode="tier-test", **options), 8)


def default(memory: int, **options: Any) -> Trial:
    (row,) = plan(tiers=(memory,), **options).rows
    return row.trial


def variants(**options: Any) -> list[tuple[str, bool]]:
    return [(row.trial.variant, row.skipped is None) for row in plan(**options).rows]


def test_seven_cards_in_order() -> None:
    """R6, R56, R120: and each in a process of its own."""
    found = plan()
    assert [row.trial.memory for row in found.rows] == [4, 6, 8, 12, 16, 20, 24]
    assert [len(job.trials) for job in found.jobs] == [1] * 7


def test_exactly_the_cards_asked_for_each_once() -> None:
    """R57."""
    assert [row.trial.memory for row in plan(tiers=(6, 8, 16, 8)).rows] == [6, 8, 16]


def test_flags_are_off_unless_given() -> None:
    """R121 ... R124."""
    values = command.make_context("test", []).params
    flags = ("tier_with_lm", "tier_skip_compile", "tier_boundary", "tier_batch_boundary")
    assert [values[flag] for flag in flags] == [False] * 4


@pytest.mark.parametrize(
    ("memory", "tier", "lm"),
    [
        (4, "tier1", None), (6, "tier2", None), (8, "tier4", "0.6B"), (12, "tier5", "1.7B"), (16, "tier6a", "1.7B"),
        (20, "tier6b", "1.7B"), (24, "unlimited", "4B"),
    ],
)  # fmt: skip
def test_each_card_has_its_tier_and_its_language_model_when_asked_for(memory: int, tier: str, lm: str | None) -> None:
    """R59, R60, R68 ... R75."""
    assert (default(memory).tier, default(memory).lm_size) == (tier, None)
    assert default(memory, tier_with_lm=True).lm_size == lm


def test_a_run_is_one_song_of_thirty_seconds_in_eight_steps() -> None:
    """R64, R76."""
    trial = default(8)
    assert (trial.duration, trial.batch_size, trial.inference_steps) == (30, 1, 8)
    assert default(8, duration=12.0, inference_steps=3).duration == 12


def test_sixteen_offloads_and_twenty_and_above_do_not() -> None:
    """R80, R81."""
    assert default(16).placement.offload_to_cpu
    for memory in (20, 24):
        assert default(memory).placement == Placement(compile=True)


def test_xl_models_decide_where_they_are_supported() -> None:
    """Elsewhere they are tried, and that they do not fit is a result."""
    found = plan(config_path="acestep-v15-xl-turbo", tier_batch_boundary=True)
    decides = {row.trial.memory: row.trial.decides for row in found.rows if row.trial.batch_size == 1}
    assert decides == {4: False, 6: False, 8: False, 12: True, 16: True, 20: True, 24: True}
    assert default(4).decides
    assert default(4, config_path="acestep-v15-xl-turbo", tiny=True).decides


def test_compilation_is_skipped_where_nothing_is_quantised() -> None:
    """R61."""
    compiled = {row.trial.memory: row.trial.placement.compile for row in plan(tier_skip_compile=True).rows}
    assert compiled == {4: True, 6: True, 8: True, 12: True, 16: True, 20: False, 24: False}


def test_the_boundary_has_three_variants_in_order() -> None:
    """R83 ... R86, R88."""
    rows = [row.trial for row in plan(tiers=(8,), tier_boundary=True, tier_with_lm=True).rows]
    assert [trial.variant for trial in rows] == ["default", "no-quant", "no-offload"]
    own, no_quant, no_offload = (trial.placement for trial in rows)
    assert own == default(8).placement
    assert no_quant == Placement(offload_to_cpu=True, offload_dit_to_cpu=True, compile=True, automatic_offload=True)
    assert no_offload == Placement(compile=True)
    assert {trial.lm_size for trial in rows} == {"0.6B"}


def test_variants_that_change_nothing_are_listed_with_the_reason() -> None:
    assert variants(tiers=(20,), tier_boundary=True) == [("default", True), ("no-quant", False), ("no-offload", False)]
    reasons = [row.skipped for row in plan(tiers=(20,), tier_boundary=True).rows]
    assert reasons[1:] == [
        "tier6b does not quantise: the result would equal the default",
        "tier6b keeps everything on the GPU already: the result would equal the default",
    ]


def test_batches_grow_without_and_with_the_language_model() -> None:
    """R90, R92: also without --tier-with-lm."""
    rows = [row.trial for row in plan(tiers=(8,), tier_batch_boundary=True).rows]
    assert [(trial.variant, trial.batch_size, trial.lm_size) for trial in rows] == [
        *((f"batch-noLM-{size}", size, None) for size in (1, 2, 4, 8)),
        *((f"batch-LM-{size}", size, "0.6B") for size in (1, 2, 4, 8)),
    ]


def test_batches_go_beyond_the_tiers_own_limit() -> None:
    assert default(4).placement == plan(tiers=(4,), tier_batch_boundary=True).rows[3].trial.placement
    assert plan(tiers=(4,), tier_batch_boundary=True).rows[3].trial.batch_size == 8


def test_a_card_without_a_language_model_says_so_once() -> None:
    rows = plan(tiers=(4,), tier_batch_boundary=True).rows
    assert (rows[-1].trial.variant, rows[-1].skipped) == ("batch-LM-1", "tier1 runs no language model")
    assert len(rows) == 5


def test_batches_are_tried_on_the_cards_asked_for() -> None:
    """R93, R147."""
    rows = plan(tiers=(8, 12, 16, 24), tier_batch_boundary=True, tier_with_lm=True).rows
    assert list(dict.fromkeys(row.trial.memory for row in rows)) == [8, 12, 16, 24]


def test_what_shares_its_models_shares_a_process() -> None:
    jobs = plan(tiers=(8,), tier_batch_boundary=True).jobs
    assert [[trial.batch_size for trial in job.trials] for job in jobs] == [[1, 2, 4, 8], [1, 2, 4, 8]]


def test_what_a_tier_does_by_itself_decides() -> None:
    rows = plan(tiers=(8,), tier_boundary=True, tier_batch_boundary=True).rows
    assert [row.trial.variant for row in rows if row.trial.decides] == ["default", "batch-noLM-1", "batch-LM-1"]


@given(st.lists(st.integers(1, 100), min_size=1, max_size=5).map(tuple), st.booleans(), st.booleans(), st.booleans())
def test_every_row_is_one_of_its_kind_and_tried_once_or_skipped(
    tiers: tuple[int, ...], with_lm: bool, boundary: bool, batches: bool
) -> None:
    found = plan(tiers=tiers, tier_with_lm=with_lm, tier_boundary=boundary, tier_batch_boundary=batches)
    names = [(row.trial.memory, row.trial.variant) for row in found.rows]
    assert len(set(names)) == len(names)
    assert [row.trial for row in found.rows if row.skipped is None] == [t for job in found.jobs for t in job.trials]
    for job in found.jobs:
        assert len({(trial.memory, trial.placement, trial.lm_model) for trial in job.trials}) == 1
        # What a language model's engine makes room for when it starts.
        assert job.songs == (8 if len(job.trials) >= len(BATCH_SIZES) else 1)
