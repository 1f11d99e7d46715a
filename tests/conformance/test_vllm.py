"""What is special to the vLLM backend (R14)."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vllm import SamplingParams

from acestep.errors import BackendFailed, BudgetExceeded, OutOfMemory
from acestep.planner.backends.choices import TokenChoice
from acestep.planner.backends.vllm.engine import Reservation
from acestep.planner.backends.vllm.processors import processor_class
from acestep.planner.backends.vllm.selection import ROW, CodesSelection, TokenSelector
from acestep.planner.budget import bytes_per_position
from acestep.planner.sampling import item_keys
from acestep.types import GenerationRequest, SamplingSettings
from tests.conformance.conftest import SONGS
from tests.planner.plan_requests import asks

CPU = torch.device("cpu")
SAMPLED = SamplingSettings()


def test_the_engine_reserves_the_worst_case_and_no_more(tiny):
    row = tiny.context_limit * bytes_per_position(tiny)
    assert Reservation.for_songs(tiny, 3, None) == Reservation(6, tiny.context_limit, 6 * row)
    assert Reservation.for_songs(tiny, 3, 4 * row).bytes == 4 * row
    with pytest.raises(OutOfMemory, match="`lm_backend` pt"):
        Reservation.for_songs(tiny, 3, 2 * row - 1)


def test_b2_more_songs_than_the_engine_was_started_for_are_refused(planner):
    """In the reference a pair that cannot grow waits for ever."""
    request = GenerationRequest(caption="calm", lyrics="", duration=10, batch_size=SONGS + 1, thinking=True)
    seen = []
    with pytest.raises(BudgetExceeded, match="started for 6"):
        planner.plan(asks(request, range(SONGS + 1)), seen.append)
    assert not seen


def test_songs_of_the_greatest_length_fit_together(planner, backend, unconditional):
    """Every row reaches the last position it may have; nothing is preempted."""
    context = planner.budget.context_limit
    prompt = [*range(100, 1_100)] * 9
    count = 40
    tokens = backend.generate_codes(prompt[: context - count], unconditional, count, SAMPLED, [1, 2, 3])
    assert [len(series) for series in tokens.ids] == [count] * 3
    alone = backend.generate_codes(prompt[: context - count], unconditional, count, SAMPLED, [2])
    assert tokens.ids[1] == alone.ids[0]
    # Together the prompts are too long for one pass, so the songs started one after the other.
    assert (alone.forwards, tokens.forwards) == (count, count + 2)


def test_prompts_that_fit_into_no_pass_are_refused(planner, backend):
    half = [7] * (planner.budget.context_limit // 2 + 10)
    with pytest.raises(BudgetExceeded, match="negative prompt"):
        backend.generate_codes(half, half, 5, SAMPLED, [1])


def test_pairs_that_differ_are_an_error(backend, conditional, unconditional, monkeypatch):
    decide = CodesSelection.tokens

    def differently(selection, logits, rows):
        return decide(selection, logits, rows) + torch.arange(len(rows))

    monkeypatch.setattr(CodesSelection, "tokens", differently)
    with pytest.raises(BackendFailed, match="different passes"):
        backend.generate_codes(conditional, unconditional, 5, SAMPLED, [1, 2])
    monkeypatch.undo()
    assert len(backend.generate_codes(conditional, unconditional, 5, SAMPLED, [1, 2]).ids) == 2


def test_a_row_without_its_pair_is_noticed(tiny):
    selection = CodesSelection(
        TokenChoice.codes(tiny.vocabulary.layout), SAMPLED, torch.zeros(3, 2, dtype=torch.long), guided=True
    )
    logits = torch.randn(3, tiny.vocabulary.layout.vocabulary_size)
    selection.tokens(logits[:2], [3, 1])
    assert selection.in_step
    selection.tokens(logits, [0, 1, 3])
    assert not selection.in_step


def test_both_interfaces_of_vllm_decide_the_same_tokens(tiny):
    """Model Runner V2 needs Triton, which has no CPU build here: its interface is driven as its sampler drives it."""
    layout = tiny.vocabulary.layout
    keys = torch.stack([item_keys(seed, "lm.codes", 2) for seed in (1, 2)], dim=1)
    logits = torch.randn(5, layout.vocabulary_size, generator=torch.Generator().manual_seed(1))
    decided = []
    for v2 in (False, True):
        selector = TokenSelector()
        selector.open(CodesSelection(TokenChoice.codes(layout), SAMPLED, keys, guided=True))
        params = [SamplingParams(extra_args=None if row is None else {ROW: row}) for row in (1, 2, None, 0, 3)]
        own = logits.clone()
        if v2:
            processor = processor_class(selector, v2=True)(None, None)
            slots = [4, 9, 2, 7, 0]
            assert [processor.add_request(slot, each) for slot, each in zip(slots, params, strict=True)] == [
                True, True, False, True, True,
            ]  # fmt: skip
            processor.apply(own, SimpleNamespace(idx_mapping_np=np.array(slots)))
        else:
            processor = processor_class(selector, v2=False)(None, CPU, False)
            added = [(place, each, None, []) for place, each in enumerate(params)]
            processor.update_state(SimpleNamespace(removed=[], added=added, moved=[]))
            processor.apply(own)
        assert torch.equal(own[2], logits[2])
        assert own.isfinite().sum(dim=1).tolist() == [1, 1, layout.vocabulary_size, 1, 1]
        decided.append(own.argmax(dim=1).tolist())
    assert decided[0] == decided[1]
    assert (decided[0][0], decided[0][1]) == (decided[0][4], decided[0][3])


def test_a_slot_of_v2_forgets_its_former_request():
    processor = processor_class(TokenSelector(), v2=True)(None, None)
    assert processor.add_request(3, SamplingParams(extra_args={ROW: 0}))
    assert not processor.add_request(3, SamplingParams())
