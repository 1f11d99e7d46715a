"""The same tokens, counts and errors on every language-model backend (R14-R17)."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from acestep.blueprints import create_sample
from acestep.errors import BudgetExceeded
from acestep.planner.backends.registry import create_planner
from acestep.types import GenerationRequest, Progress, SamplingSettings, SongMetadata, SongwritingSettings
from acestep_otel import semconv
from tests.conformance import definition
from tests.conformance.conftest import BACKEND, COMPLETE, HERE
from tests.planner.plan_requests import asks

GREEDY = SamplingSettings(temperature=0)
SAMPLED = SamplingSettings()
FEW = SamplingSettings(top_k=40, top_p=0.7, guidance_scale=3.5)
SEEDS = (11, 12, 13)


class Stopped(Exception):
    pass


def stop_after(count: int):
    def progress(_: Progress) -> None:
        nonlocal count
        count -= 1
        if count == 0:
            raise Stopped

    return progress


def test_the_backend_is_the_one_under_test(backend, planner):
    assert backend.name == planner.backend.name == BACKEND


@pytest.mark.parametrize("songs", [1, 3])
@pytest.mark.parametrize("guided", [True, False], ids=["cfg", "no cfg"])
@pytest.mark.parametrize("settings", [GREEDY, SAMPLED, FEW], ids=["greedy", "sampled", "few candidates"])
def test_codes_are_those_of_the_definition(backend, tiny, conditional, unconditional, settings, guided, songs):
    prompt = unconditional if guided else None
    tokens = backend.generate_codes(conditional, prompt, 24, settings, SEEDS[:songs])
    assert tokens.ids == tuple(
        definition.codes(tiny, conditional, prompt, 24, settings, seed) for seed in SEEDS[:songs]
    )


def test_a_conditional_prompt_shorter_than_the_unconditional_one(backend, tiny, conditional, unconditional):
    tokens = backend.generate_codes(unconditional, conditional, 12, SAMPLED, [3])
    assert tokens.ids[0] == definition.codes(tiny, unconditional, conditional, 12, SAMPLED, 3)


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("given", [SongMetadata(), COMPLETE], ids=["open", "given"])
def test_constrained_metadata_is_that_of_the_definition(backend, tiny, grammar, reasoning, settings, given):
    options = {"with_caption": True, "with_language": True, "caption_token_limit": 20}
    tokens = backend.generate_metadata(reasoning, grammar.cursor(given, **options), settings, 4, 640)
    expected = definition.metadata(tiny, reasoning, grammar.cursor(given, **options), settings, 4)
    assert tokens.ids == (expected,)
    assert tokens.sampled_tokens + tokens.forced_tokens == len(expected)
    assert (tokens.prompt_tokens, tokens.unconditional_tokens) == (len(reasoning), 0)


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_unconstrained_metadata_is_that_of_the_definition(backend, tiny, reasoning, settings):
    layout = tiny.vocabulary.layout
    tokens = backend.generate_metadata(reasoning, None, settings, 4, 30)
    ends = {layout.think_close, layout.eos, layout.pad}
    everything = np.arange(layout.text_size)
    assert tokens.ids[0] == definition.free_text(tiny, reasoning, everything, ends, "lm.cot", 30, settings, 4)
    assert (tokens.sampled_tokens, tokens.forced_tokens) == (len(tokens.ids[0]), 0)


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_lyrics_are_those_of_the_definition(backend, tiny, prompts, settings):
    prompt, layout = prompts.inspire("rain", instrumental=False), tiny.vocabulary.layout
    allowed = np.append(tiny.vocabulary.text_ids, layout.eos)
    tokens = backend.generate_lyrics(prompt, settings, 4, 20)
    assert tokens.ids[0] == definition.free_text(tiny, prompt, allowed, {layout.eos}, "lm.lyrics", 20, settings, 4)


def test_text_ends_with_its_turn(backend, tiny, prompts):
    """At such a heat every token is as likely as any other, so one in a thousand ends the turn."""
    layout, ended = tiny.vocabulary.layout, False
    hot = SamplingSettings(temperature=1e6)
    for seed in range(20):
        tokens = backend.generate_lyrics(prompts.inspire("rain", instrumental=True), hot, seed, 500)
        assert layout.eos not in tokens.ids[0][:-1]
        ended = tokens.ids[0][-1] == layout.eos
        if ended:
            break
    assert ended


def test_b26_seeds_are_reproducible_and_do_not_depend_on_the_place_in_the_batch(backend, conditional, unconditional):
    alone = [backend.generate_codes(conditional, unconditional, 40, SAMPLED, [seed]).ids[0] for seed in SEEDS]
    together = backend.generate_codes(conditional, unconditional, 40, SAMPLED, [13, 11, 12])
    assert together.ids == (alone[2], alone[0], alone[1])
    assert len(set(alone)) == 3


@pytest.mark.parametrize("guided", [True, False], ids=["cfg", "no cfg"])
def test_samples_are_distributed_as_the_model_says(backend, tiny, conditional, unconditional, guided):
    """Chi-square over 600 first codes among six candidates; 20.5 is exceeded once in a thousand times by chance."""
    settings = SamplingSettings(temperature=1.0, top_k=6, top_p=1.0, guidance_scale=1.5)
    prompt = unconditional if guided else None
    logits = definition.guided_code_logits(tiny, conditional, prompt, [], settings.guidance_scale)[0]
    best = logits.topk(6)
    drawn = [
        series[0] - tiny.vocabulary.layout.code_base
        for first in range(0, 600, 3)
        for series in backend.generate_codes(conditional, prompt, 1, settings, range(first, first + 3)).ids
    ]
    expected = 600 * best.values.softmax(dim=-1).cpu()
    seen = torch.tensor([drawn.count(code) for code in best.indices.tolist()])
    assert int(seen.sum()) == 600
    assert float(((seen - expected) ** 2 / expected).sum()) < 20.5


@pytest.mark.parametrize(
    "changed",
    [{"temperature": 0.2}, {"top_k": 3}, {"top_p": 0.05}, {"guidance_scale": 6.0}],
    ids=["temperature", "top_k", "top_p", "guidance_scale"],
)
def test_b1_every_setting_has_an_effect(backend, conditional, unconditional, changed):
    usual = backend.generate_codes(conditional, unconditional, 20, SAMPLED, [5])
    assert usual.ids != backend.generate_codes(conditional, unconditional, 20, replace(SAMPLED, **changed), [5]).ids


@pytest.mark.parametrize("count", [1, 5, 61])
def test_exactly_as_many_codes_as_asked_and_only_valid_ones(backend, tiny, conditional, unconditional, count):
    tokens = backend.generate_codes(conditional, unconditional, count, SAMPLED, [1, 2])
    assert [len(series) for series in tokens.ids] == [count, count]
    for series in tokens.ids:
        assert all(0 <= tiny.vocabulary.id_to_code(token_id) < 64_000 for token_id in series)
    assert (tokens.sampled_tokens, tokens.forced_tokens) == (2 * count, 0)
    assert (tokens.prompt_tokens, tokens.forwards) == (len(conditional), count)
    assert tokens.unconditional_tokens == len(unconditional) + 2 * count


def test_a_whole_plan_is_the_same_on_every_backend(planner, tiny):
    request = GenerationRequest(
        caption="calm piano",
        lyrics="[Verse]\nhello",
        duration=10,
        batch_size=2,
        thinking=True,
        use_cot_metas=True,
        use_cot_caption=True,
        use_cot_language=True,
    )
    reference = create_planner("pt", tiny, 2, HERE)
    plan, expected = planner.plan(asks(request, [1, 2])), reference.plan(asks(request, [1, 2]))
    assert (plan.metadata, plan.codes) == (expected.metadata, expected.codes)
    assert [len(series) for series in plan.codes] == [50, 50]


def test_what_does_not_fit_is_refused_before_anything_runs(planner, conditional, unconditional):
    request = GenerationRequest(caption="calm", lyrics="word " * 8_000, duration=600, thinking=True)
    seen = []
    with pytest.raises(BudgetExceeded, match="positions"):
        planner.plan(asks(request, [1]), seen.append)
    assert not seen
    assert len(planner.backend.generate_codes(conditional, unconditional, 3, SAMPLED, [1]).ids[0]) == 3


def test_its_passes_and_its_grammar_are_measured(planner, traced):
    """By what the layer wraps: a backend that it does not know has phases without these figures, and no error."""
    traced.instrument()
    create_sample(planner, "rain", settings=SongwritingSettings(seed=1, lyrics_token_limit=8))
    (cot,), (lyrics,) = traced.named(semconv.LM_COT), traced.named(semconv.LM_LYRICS)
    assert cot.attributes[semconv.LM_CONSTRAINED_DECODING_DURATION] > 0
    for phase in (cot, lyrics):
        assert 0 < phase.attributes[semconv.LM_PREFILL_DURATION] <= phase.attributes[semconv.LM_TIME_TO_FIRST_TOKEN]
        assert phase.attributes[semconv.LM_DECODE_DURATION] > 0


def test_b31_progress_is_reported(backend, conditional, unconditional):
    seen: list[Progress] = []
    backend.generate_codes(conditional, unconditional, 70, SAMPLED, [1, 2], seen.append)
    assert [(report.stage, report.done, report.total) for report in seen] == [
        ("lm.codes", 32, 70),
        ("lm.codes", 64, 70),
        ("lm.codes", 70, 70),
    ]


def test_b31_a_run_can_be_stopped_in_the_middle_of_a_phase(backend, grammar, reasoning, conditional, unconditional):
    codes = backend.generate_codes(conditional, unconditional, 40, SAMPLED, SEEDS)
    text = backend.generate_metadata(reasoning, None, SAMPLED, 1, 20)
    with pytest.raises(Stopped):
        backend.generate_codes(conditional, unconditional, 200, SAMPLED, SEEDS, stop_after(1))
    with pytest.raises(Stopped):
        backend.generate_metadata(reasoning, None, SAMPLED, 1, 200, stop_after(7))
    cursor = grammar.cursor(SongMetadata(), with_caption=True, with_language=True)
    with pytest.raises(Stopped):
        backend.generate_metadata(reasoning, cursor, SAMPLED, 1, 200, stop_after(9))
    # Nothing is left behind.
    assert backend.generate_codes(conditional, unconditional, 40, SAMPLED, SEEDS).ids == codes.ids
    assert backend.generate_metadata(reasoning, None, SAMPLED, 1, 20).ids == text.ids


def test_guidance_can_be_calibrated_and_leaves_no_trace(backend, conditional, unconditional):
    before = backend.generate_codes(conditional, unconditional, 10, SAMPLED, [1])
    for share in (backend.measure_guidance_share(2, 50), backend.measure_prefill_guidance_share(50)):
        assert 0 <= share <= 1
    assert backend.generate_codes(conditional, unconditional, 10, SAMPLED, [1]).ids == before.ids
