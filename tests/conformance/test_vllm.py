"""What is special to the vLLM backend (R14)."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vllm import SamplingParams
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from acestep.cuda_graphs import CapturedCall
from acestep.errors import BackendFailed, BudgetExceeded, OutOfMemory
from acestep.planner.backends import CodesPhase, candidates
from acestep.planner.backends.choices import TokenChoice
from acestep.planner.backends.vllm.engine import Reservation
from acestep.planner.backends.vllm.hooks import HiddenStatesModel, SelectingProcessor, SelectingSampler
from acestep.planner.backends.vllm.rows import EngineRows, RowRequest, SharedEngine
from acestep.planner.backends.vllm.selection import PHASE, ROW, CodesSelection, TokenSelector
from acestep.planner.budget import bytes_per_position
from acestep.types import GenerationRequest, Progress, SamplingSettings, SongMetadata
from tests.conformance.conftest import DEVICE, SONGS
from tests.planner.plan_requests import asks

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
    select = TokenSelector.select

    def differently(selector, hidden, rows):
        return select(selector, hidden, rows) + torch.arange(len(rows), device=DEVICE)

    monkeypatch.setattr(TokenSelector, "select", differently)
    with pytest.raises(BackendFailed, match="different passes"):
        backend.generate_codes(conditional, unconditional, 5, SAMPLED, [1, 2])
    monkeypatch.undo()
    assert len(backend.generate_codes(conditional, unconditional, 5, SAMPLED, [1, 2]).ids) == 2


@pytest.mark.parametrize("sampling", [SAMPLED, SamplingSettings(temperature=0.5)], ids=["alike", "differently"])
def test_requests_of_several_threads_share_passes_and_do_not_touch_each_other(
    backend, grammar, reasoning, conditional, unconditional, sampling
):
    def text():
        cursor = grammar.cursor(SongMetadata(), with_caption=True, with_language=True, caption_token_limit=20)
        return backend.generate_metadata(reasoning, cursor, SAMPLED, 4, 640)

    work = [
        lambda: backend.generate_codes(conditional, unconditional, 60, SAMPLED, [1]),
        lambda: backend.generate_codes(conditional, None, 40, sampling, [2]),
        text,
        lambda: backend.generate_codes(conditional, unconditional, 50, sampling, [3]),
    ]
    alone = [job() for job in work]
    before = backend._engine.passes
    with ThreadPoolExecutor(len(work)) as pool:
        together = [future.result() for future in [pool.submit(job) for job in work]]
    assert [tokens.ids for tokens in together] == [tokens.ids for tokens in alone]
    assert [tokens.forwards for tokens in together] == [tokens.forwards for tokens in alone]
    assert backend._engine.passes - before < sum(tokens.forwards for tokens in alone) * 0.8


@pytest.mark.skipif(DEVICE.type == "cuda", reason="there the kernels need no interpreter")
def test_the_kernels_continue_on_pages_that_vllm_has_written(backend, conditional, unconditional):
    """From the first page of a row to its second, and with the runner that vLLM has on CUDA."""
    prompts = [conditional + [9] * (125 - len(conditional)), unconditional]
    expected = backend.generate_codes(*prompts, 6, SAMPLED, [1, 2])
    command = [sys.executable, "-m", "tests.conformance.decode_on_pages", json.dumps([prompts, 6])]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = json.loads(done.stdout.splitlines()[-1])
    assert written == {"path": "fused", "passes": [4] * 5, "codes": [list(song) for song in expected.ids]}


class Replayed(CapturedCall):
    """What CUDA records: replayed, it reads the inputs that it holds, and overwrites its own output."""

    def __init__(self, function, *examples):
        self.inputs = [example.clone() for example in examples]
        self._function, self._output = function, function(*self.inputs)

    def replay(self):
        return self._output.copy_(self._function(*self.inputs))


@pytest.mark.skipif(DEVICE.type == "cuda", reason="there everything is recorded")
def test_recorded_draws_follow_the_songs_of_each_batch(backend, conditional, unconditional, monkeypatch):
    work = [
        lambda: backend.generate_codes(conditional, unconditional, 30, SAMPLED, [1]),
        lambda: backend.generate_codes(conditional, unconditional, 20, SAMPLED, [2, 3]),
        lambda: backend.generate_codes(conditional, None, 25, SAMPLED, [4]),
    ]
    expected = [job().ids for job in work]
    chooser = backend._selector._chooser
    chooser.clear()
    monkeypatch.setattr(candidates, "captured", Replayed)
    with ThreadPoolExecutor(len(work)) as pool:
        assert [future.result().ids for future in [pool.submit(job) for job in work]] == expected
    assert [job().ids for job in work] == expected
    chooser.clear()


def test_more_requests_than_there_is_room_for_wait_their_turn(backend, conditional, unconditional):
    alone = [backend.generate_codes(conditional, unconditional, 10, SAMPLED, [seed, seed + 1]) for seed in range(5)]
    with ThreadPoolExecutor(5) as pool:
        together = pool.map(
            lambda seed: backend.generate_codes(conditional, unconditional, 10, SAMPLED, [seed, seed + 1]), range(5)
        )
    assert [tokens.ids for tokens in together] == [tokens.ids for tokens in alone]


def test_a_request_that_is_stopped_leaves_the_others_alone(backend, conditional, unconditional):
    expected = backend.generate_codes(conditional, unconditional, 100, SAMPLED, [1])

    def stop(_: Progress) -> None:
        raise KeyError

    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(backend.generate_codes, conditional, unconditional, 100, SAMPLED, [1])
        with pytest.raises(KeyError):
            backend.generate_codes(conditional, unconditional, 200, SAMPLED, [2, 3], stop)
        assert running.result().ids == expected.ids


def test_an_engine_that_failed_says_so_until_it_is_loaded_again(tiny, conditional, monkeypatch):
    engine = SimpleNamespace(
        vllm_config=SimpleNamespace(scheduler_config=SimpleNamespace(max_num_batched_tokens=100)),
        add_request=lambda *_: None,
        step=lambda: 1 / 0,
    )
    selector = a_selector(tiny)
    shared = SharedEngine(engine, selector, Reservation(2, 100, 0), 200, DEVICE)
    phase = CodesPhase([1, 2], None, 3, SAMPLED, [1])
    rows = EngineRows(shared, "lm.codes", [[RowRequest(0, [1, 2], 3)]], CodesSelection(phase))
    with pytest.raises(ZeroDivisionError), rows:
        rows.start()
    with pytest.raises(BackendFailed, match=r"division by zero.*load it again"):
        shared.require_running()


def a_selector(tiny) -> TokenSelector:
    selector = TokenSelector(3, 8, TokenChoice.codes(tiny.vocabulary.layout), DEVICE)
    selector.bind(tiny.head)
    return selector


def started(selector: TokenSelector, phase: CodesPhase) -> CodesSelection:
    selection = CodesSelection(phase)
    selector.add(selection)
    for song in range(selection.songs):
        selector.start_song(selection, song)
    return selection


def test_a_row_without_its_pair_is_noticed(tiny):
    selector = a_selector(tiny)
    selection = started(selector, CodesPhase([1], [2], 3, SAMPLED, [1, 2]))
    hidden = torch.randn(3, tiny.head.shape[1]).to(DEVICE)
    selector.select(hidden[:2], ((selection.number, 3), (selection.number, 1)))
    assert selection.in_step
    selector.select(hidden, tuple((selection.number, row) for row in (0, 1, 3)))
    assert not selection.in_step


def test_nan_in_one_song_is_reported_for_its_phase_only(tiny):
    selector = a_selector(tiny)
    selections = [started(selector, CodesPhase([1], None, 3, SAMPLED, [seed])) for seed in (1, 2)]
    hidden = torch.randn(2, tiny.head.shape[1]).to(DEVICE)
    hidden[1, 5] = torch.nan
    selector.select(hidden, tuple((selection.number, 0) for selection in selections))
    assert [selector.remove(selection) for selection in selections] == [True, False]


def test_both_interfaces_of_vllm_decide_the_same_tokens(tiny, monkeypatch):
    """Model Runner V2 needs Triton, which has no CPU build here: its interface is driven as its runner drives it."""
    hidden = torch.randn(5, tiny.head.shape[1], generator=torch.Generator().manual_seed(1)).to(DEVICE)
    decided = []
    for v2 in (False, True):
        selector = a_selector(tiny)
        number = started(selector, CodesPhase([1], [2], 2, SAMPLED, [1, 2])).number
        params = [
            SamplingParams(extra_args=None if row is None else {PHASE: number, ROW: row}) for row in (0, 1, None, 2, 3)
        ]
        if v2:
            sampler = SelectingSampler(selector, None, 5, DEVICE)
            slots = [4, 9, 2, 7, 0]
            for slot, each in zip(slots, params, strict=True):
                sampler.add_request(slot, each)
            output = sampler(hidden, SimpleNamespace(idx_mapping_np=np.array(slots)))
            assert output.num_sampled.tolist() == [1] * 5
            assert output.num_rejected.tolist() == [0] * 5
            decided.append(output.sampled_token_ids[:, 0].tolist())
        else:
            size = tiny.vocabulary.layout.vocabulary_size
            config = SimpleNamespace(model_config=SimpleNamespace(get_vocab_size=lambda size=size: size))
            monkeypatch.setattr(HiddenStatesModel, "selector", selector)
            processor = SelectingProcessor(config, DEVICE, False)
            added = [(place, each, None, []) for place, each in enumerate(params)]
            processor.update_state(SimpleNamespace(removed=[], added=added, moved=[]))
            logits = processor.apply(hidden)
            assert logits.isfinite().sum(dim=1).tolist() == [1] * 5
            decided.append(logits.argmax(dim=1).tolist())
    assert decided[0] == decided[1]
    assert (decided[0][0], decided[0][1]) == (decided[0][3], decided[0][4])


def test_a_slot_of_v2_forgets_its_former_request(tiny):
    selector = a_selector(tiny)
    selection = started(selector, CodesPhase([1], None, 2, SAMPLED, [1]))
    sampler = SelectingSampler(selector, None, 5, DEVICE)
    for params in (SamplingParams(extra_args={PHASE: selection.number, ROW: 0}), SamplingParams()):
        sampler.add_request(3, params)
        sampler(torch.randn(1, tiny.head.shape[1]).to(DEVICE), SimpleNamespace(idx_mapping_np=np.array([3])))
    assert selection.steps == [1]


def test_the_engine_runs_on_the_device_that_was_named():
    """What ``build_engine`` sets is where vLLM's executor takes the number of the device from."""
    config = SimpleNamespace(device_config=SimpleNamespace(device=torch.device("cuda", 1)))
    assert UniProcExecutor._distributed_args(SimpleNamespace(vllm_config=config))[2] == 1
