from dataclasses import replace

import pytest
import torch

from acestep.errors import BudgetExceeded
from acestep.planner.budget import LanguageModel, PlannerBudget, rounded_positions


def budget(free: int | None = None) -> PlannerBudget:
    return PlannerBudget(context_limit=1000, bytes_per_position=2**20, free_bytes=lambda: free)


def test_what_fits_passes() -> None:
    budget().check("lm.codes", prompt_tokens=400, output_tokens=600, rows=16)
    budget(free=2048 * 2**20).check("lm.codes", prompt_tokens=400, output_tokens=600, rows=2)


def test_b6_too_many_positions_are_refused_by_number() -> None:
    """The reference cuts the prompt or leaves its fast path without a word."""
    with pytest.raises(BudgetExceeded, match=r"need 1001 positions, but the language model has 1000") as caught:
        budget().check("lm.codes", prompt_tokens=401, output_tokens=600, rows=1)
    assert caught.value.stage == "lm.codes"


def test_b2_too_little_memory_is_refused_before_the_first_pass() -> None:
    """The reference hangs when keys and values run out."""
    with pytest.raises(BudgetExceeded, match=r"2 rows of 1024 positions need 2.00 GiB, but only 1.00 GiB are free"):
        budget(free=2**30).check("lm.codes", prompt_tokens=400, output_tokens=600, rows=2)


def test_b2_more_rows_than_an_engine_was_started_for_are_refused() -> None:
    limits = replace(budget(), row_limit=4)
    limits.check("lm.codes", prompt_tokens=400, output_tokens=600, rows=4)
    with pytest.raises(BudgetExceeded, match=r"6 rows were requested .* was started for 4: generate fewer songs"):
        limits.check("lm.codes", prompt_tokens=1, output_tokens=1, rows=6)


def test_memory_per_position_follows_the_architecture(tiny: LanguageModel) -> None:
    limits = PlannerBudget.of(tiny)
    # keys and values, 2 layers, 1 head of 32, float32
    assert limits.bytes_per_position == 2 * 2 * 1 * 32 * 4
    assert limits.context_limit == 8192
    assert limits.free_bytes() is None


def test_positions_are_set_aside_in_blocks() -> None:
    assert [rounded_positions(positions) for positions in (1, 512, 513, 1024)] == [512, 512, 1024, 1024]


def test_memory_of_the_backend_can_be_reused(tiny: LanguageModel, monkeypatch) -> None:
    monkeypatch.setattr("acestep.planner.budget.effective_free_memory", lambda device: 1000)
    on_cuda = replace(tiny, device=torch.device("cuda"))
    assert PlannerBudget.of(on_cuda, held_bytes=lambda: 24).free_bytes() == 1024
