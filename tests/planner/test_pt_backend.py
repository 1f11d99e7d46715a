from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch

from acestep.errors import InvalidOutput
from acestep.planner.backends.pt import PtBackend
from acestep.planner.budget import LanguageModel, PlannerBudget, rounded_positions
from acestep.planner.grammar import MetadataGrammar
from acestep.planner.prompts import Prompts
from acestep.planner.sampling import item_keys, sample
from acestep.synthetic.language_model import build_language_model
from acestep.types import Progress, SamplingSettings, SongMetadata

SAMPLING = SamplingSettings()
GREEDY = SamplingSettings(temperature=0)
COMPLETE = SongMetadata(bpm=120, duration=60, keyscale="F# minor", language="en", timesignature="4")


@pytest.fixture
def backend(tiny: LanguageModel) -> PtBackend:
    return PtBackend(tiny)


@pytest.fixture(scope="module")
def conditional(tiny: LanguageModel) -> list[int]:
    return Prompts(tiny.vocabulary).codes("calm piano", "[Verse]\nhello", COMPLETE)


@pytest.fixture(scope="module")
def unconditional(tiny: LanguageModel) -> list[int]:
    return Prompts(tiny.vocabulary).unconditional_codes()


def reference_codes(
    model: LanguageModel, conditional: list[int], unconditional: list[int] | None, count: int, settings, seed: int
) -> list[int]:
    """The definition: no cache, no padding, no batch; guidance on float32 logits of the whole vocabulary."""
    layout = model.vocabulary.layout
    keys, written = item_keys(seed, "lm.codes", count), []
    for step in range(count):
        logits = [
            model.body(input_ids=torch.tensor([[*prompt, *written]])).last_hidden_state[:, -1].float() @ model.head.T
            for prompt in (conditional, unconditional)
            if prompt is not None
        ]
        guided = logits[-1] + settings.guidance_scale * (logits[0] - logits[-1]) if unconditional else logits[0]
        codes = guided[:, layout.code_base : layout.code_base + layout.code_count]
        written.append(layout.code_base + int(sample(codes, settings, keys[step : step + 1])))
    return written


@pytest.mark.parametrize("settings", [GREEDY, SAMPLING, SamplingSettings(top_k=40, guidance_scale=3.5)])
def test_guided_codes_are_those_of_the_definition(backend, tiny, conditional, unconditional, settings) -> None:
    tokens = backend.generate_codes(conditional, unconditional, 12, settings, [3])
    assert list(tokens.ids[0]) == reference_codes(tiny, conditional, unconditional, 12, settings, 3)


def test_unguided_codes_are_those_of_the_definition(backend, tiny, conditional) -> None:
    tokens = backend.generate_codes(conditional, None, 12, SAMPLING, [3])
    assert list(tokens.ids[0]) == reference_codes(tiny, conditional, None, 12, SAMPLING, 3)


def test_a_conditional_prompt_shorter_than_the_unconditional_one(backend, tiny, conditional, unconditional) -> None:
    swapped = backend.generate_codes(unconditional, conditional, 12, SAMPLING, [3])
    assert list(swapped.ids[0]) == reference_codes(tiny, unconditional, conditional, 12, SAMPLING, 3)


def test_guidance_of_one_is_no_guidance(backend, conditional, unconditional) -> None:
    plain = backend.generate_codes(conditional, None, 20, SAMPLING, [1])
    guided = backend.generate_codes(conditional, unconditional, 20, replace(SAMPLING, guidance_scale=1.0), [1])
    assert plain.ids == guided.ids


def test_guidance_changes_the_codes(backend, conditional, unconditional) -> None:
    plain = backend.generate_codes(conditional, None, 20, SAMPLING, [1])
    assert plain.ids != backend.generate_codes(conditional, unconditional, 20, SAMPLING, [1]).ids


def test_b26_a_song_does_not_depend_on_its_neighbours(backend, conditional, unconditional) -> None:
    """The reference never seeds single songs, and seeds batches by their position."""
    alone = [backend.generate_codes(conditional, unconditional, 40, SAMPLING, [seed]).ids[0] for seed in (11, 12, 13)]
    together = backend.generate_codes(conditional, unconditional, 40, SAMPLING, [13, 11, 12])
    assert together.ids == (alone[2], alone[0], alone[1])


@pytest.mark.parametrize(
    "changed",
    [{"temperature": 0.2}, {"top_k": 3}, {"top_p": 0.05}, {"guidance_scale": 6.0}],
    ids=["temperature", "top_k", "top_p", "guidance_scale"],
)
def test_b1_every_setting_has_an_effect(backend, conditional, unconditional, changed) -> None:
    """In the reference's fast backend top-p and the repetition penalty do nothing."""
    usual = backend.generate_codes(conditional, unconditional, 20, SAMPLING, [5])
    assert usual.ids != backend.generate_codes(conditional, unconditional, 20, replace(SAMPLING, **changed), [5]).ids


def test_only_valid_codes_and_exactly_as_many_as_asked(backend, tiny, conditional, unconditional) -> None:
    tokens = backend.generate_codes(conditional, unconditional, 61, SAMPLING, [1, 2])
    assert [len(series) for series in tokens.ids] == [61, 61]
    for series in tokens.ids:
        assert all(0 <= tiny.vocabulary.id_to_code(token_id) < 64_000 for token_id in series)
        # Random weights, yet a song and not one code over and over.
        assert len(set(series)) > 50


def test_counts_of_the_codes_phase(backend, conditional, unconditional) -> None:
    tokens = backend.generate_codes(conditional, unconditional, 10, SAMPLING, [1, 2, 3])
    assert tokens.prompt_tokens == len(conditional)
    assert (tokens.sampled_tokens, tokens.forced_tokens) == (30, 0)
    assert tokens.unconditional_tokens == len(unconditional) + 30
    assert tokens.forwards == 10  # the prompts, and nine more: nothing reads the last code


def test_one_decode_call_per_token_for_all_rows(backend, conditional, unconditional, monkeypatch) -> None:
    calls = []
    decode = backend.decode
    monkeypatch.setattr(backend, "decode", lambda *args: calls.append(args[1]) or decode(*args))
    backend.generate_codes(conditional, unconditional, 10, SAMPLING, [1, 2, 3])
    assert len(calls) == 10
    assert calls[0] is None
    assert all(pending.shape == (6, 1) for pending in calls[1:])


def test_forced_tokens_ride_along_as_a_chunk(backend, tiny, tiny_grammar: MetadataGrammar, monkeypatch) -> None:
    chunks = []
    decode = backend.decode
    monkeypatch.setattr(backend, "decode", lambda *args: chunks.append(args[1]) or decode(*args))
    prompt = Prompts(tiny.vocabulary).reasoning("calm", "")
    cursor = tiny_grammar.cursor(SongMetadata(), with_caption=False, with_language=True)
    tokens = backend.generate_metadata(prompt, cursor, SAMPLING, 1, 600)
    assert cursor.done
    assert tokens.sampled_tokens == len(chunks) == tokens.forwards
    assert tokens.forced_tokens > tokens.sampled_tokens
    assert any(chunk is not None and chunk.shape[1] > 2 for chunk in chunks)
    assert len(tokens.ids[0]) == tokens.sampled_tokens + tokens.forced_tokens


def test_constrained_metadata_is_that_of_the_definition(backend, tiny, tiny_grammar: MetadataGrammar) -> None:
    prompt = Prompts(tiny.vocabulary).reasoning("calm", "")
    options = {"with_caption": True, "with_language": True, "caption_token_limit": 20}
    tokens = backend.generate_metadata(prompt, tiny_grammar.cursor(COMPLETE, **options), SAMPLING, 4, 600)
    cursor = tiny_grammar.cursor(COMPLETE, **options)
    written, keys = cursor.forced(), iter(item_keys(4, "lm.cot", 600))
    while not cursor.done:
        logits = tiny.body(input_ids=torch.tensor([[*prompt, *written]])).last_hidden_state[:, -1].float() @ tiny.head.T
        ids = torch.from_numpy(cursor.allowed().ids)
        # Few candidates are numbered among themselves, many by their place among the text tokens.
        if len(ids) > 256:
            text = logits[:, : tiny.vocabulary.layout.text_size]
            logits, ids = text + torch.full_like(text, -torch.inf).index_fill(1, ids, 0), torch.arange(text.shape[1])
        else:
            logits = logits[:, ids]
        drawn = int(ids[sample(logits, SAMPLING, next(keys).unsqueeze(0))])
        cursor.accept(drawn)
        written += [drawn, *cursor.forced()]
    assert list(tokens.ids[0]) == written


def test_free_metadata_ends_at_its_limit_and_contains_no_codes(backend, tiny) -> None:
    prompt = Prompts(tiny.vocabulary).reasoning("calm", "")
    tokens = backend.generate_metadata(prompt, None, SAMPLING, 1, 30)
    assert tokens.sampled_tokens <= 30
    assert tokens.forced_tokens == 0
    assert max(tokens.ids[0]) < tiny.vocabulary.layout.text_size


def test_free_metadata_ends_with_the_thought(backend, tiny, monkeypatch) -> None:
    layout = tiny.vocabulary.layout
    answers = iter([layout.think_open, 300, layout.think_close, 301])
    monkeypatch.setattr(backend, "decode", lambda *_: torch.tensor([next(answers)]))
    tokens = backend.generate_metadata([1, 2], None, SAMPLING, 1, 30)
    assert tokens.ids == ((layout.think_open, 300, layout.think_close),)


def test_b31_progress_is_reported_and_can_stop_the_run(backend, conditional) -> None:
    """The reference can neither be watched nor stopped inside a phase."""
    seen: list[Progress] = []
    backend.generate_codes(conditional, None, 70, SAMPLING, [1], seen.append)
    assert [(report.stage, report.done, report.total) for report in seen] == [
        ("lm.codes", 32, 70),
        ("lm.codes", 64, 70),
        ("lm.codes", 70, 70),
    ]

    class Stopped(Exception):
        pass

    def stop(report: Progress) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        backend.generate_codes(conditional, None, 70, SAMPLING, [1], stop)


def test_not_a_number_is_an_error(tiny, conditional, unconditional) -> None:
    class Poisoned(torch.nn.Module):
        config = tiny.body.config

        def forward(self, *inputs, **options):
            output = tiny.body(*inputs, **options)
            output.last_hidden_state[:] = torch.nan
            return output

    backend = PtBackend(replace(tiny, body=Poisoned()))
    with pytest.raises(InvalidOutput, match="NaN") as caught:
        backend.generate_codes(conditional, unconditional, 3, SAMPLING, [1])
    assert caught.value.stage == "lm.codes"


def test_masks_of_a_grammar_are_built_once(backend, tiny_grammar: MetadataGrammar) -> None:
    made = []
    for _ in range(2):
        cursor = tiny_grammar.cursor(SongMetadata(bpm=100), with_caption=True, with_language=False)
        cursor.forced()
        made.append(backend.constrain(cursor))
    assert made[0] is made[1]


def test_guidance_shares_are_shares(backend) -> None:
    for share in (backend.measure_guidance_share(2, 50), backend.measure_prefill_guidance_share(50)):
        assert 0 <= share <= 1


def test_calibration_leaves_no_trace(backend, conditional, unconditional) -> None:
    before = backend.generate_codes(conditional, unconditional, 10, SAMPLING, [1])
    backend.measure_guidance_share(2, 50)
    assert backend.generate_codes(conditional, unconditional, 10, SAMPLING, [1]) == before


def test_lyrics_are_those_of_the_definition(backend, tiny) -> None:
    prompt = Prompts(tiny.vocabulary).inspire("rain", instrumental=False)
    tokens = backend.generate_lyrics(prompt, SAMPLING, 4, 12)
    allowed = torch.zeros(tiny.vocabulary.layout.text_size, dtype=torch.bool)
    allowed[torch.from_numpy(tiny.vocabulary.text_ids)] = True
    allowed[tiny.vocabulary.layout.eos] = True
    keys, written = item_keys(4, "lm.lyrics", 12), []
    for step in range(12):
        hidden = tiny.body(input_ids=torch.tensor([[*prompt, *written]])).last_hidden_state[:, -1].float()
        logits = (hidden @ tiny.head[: len(allowed)].T).masked_fill(~allowed, -torch.inf)
        written.append(int(sample(logits, SAMPLING, keys[step : step + 1])))
    assert list(tokens.ids[0]) == written
    assert (tokens.sampled_tokens, tokens.forced_tokens, tokens.unconditional_tokens) == (12, 0, 0)
    assert tokens.forwards == 12  # the prompt, and eleven more: nothing reads the last token


def test_lyrics_end_with_the_turn(backend, tiny, monkeypatch) -> None:
    layout = tiny.vocabulary.layout
    answers = iter([300, 301, layout.eos, 302])
    monkeypatch.setattr(backend, "decode", lambda *_: torch.tensor([next(answers)]))
    assert backend.generate_lyrics([1, 2], SAMPLING, 1, 30).ids == ((300, 301, layout.eos),)


@pytest.fixture
def prompt_widths(backend, monkeypatch) -> list[int]:
    """Tokens per row of every pass that the body runs."""
    widths = []
    forward = backend.model.body.forward

    def counted(ids: torch.Tensor, *inputs: Any, **options: Any) -> Any:
        widths.append(ids.shape[1])
        return forward(ids, *inputs, **options)

    monkeypatch.setattr(backend.model.body, "forward", counted)
    return widths


def reasoned(backend, tiny, tiny_grammar, seed: int = 4) -> None:
    prompt = Prompts(tiny.vocabulary).reasoning("calm piano", "[Verse]\nhello")
    cursor = tiny_grammar.cursor(COMPLETE, with_caption=False, with_language=True)
    backend.generate_metadata(prompt, cursor, SAMPLING, seed, 600)


def test_codes_continue_after_the_metadata(
    backend, tiny, tiny_grammar, conditional, unconditional, prompt_widths
) -> None:
    fresh = PtBackend(tiny).generate_codes(conditional, unconditional, 6, SAMPLING, [1, 2])
    prompt_widths.clear()
    reasoned(backend, tiny, tiny_grammar)
    prompt = Prompts(tiny.vocabulary).reasoning("calm piano", "[Verse]\nhello")
    prompt_widths.clear()
    after = backend.generate_codes(conditional, unconditional, 6, SAMPLING, [1, 2])
    assert fresh.reused_tokens == 0
    # Metadata that phase 1 wrote just so is not run again either.
    assert len(prompt) <= after.reused_tokens < len(conditional)
    assert replace(after, reused_tokens=0) == fresh
    assert prompt_widths[0] == max(len(conditional) - after.reused_tokens, len(unconditional))


def test_nothing_is_reused_by_another_request(
    backend, tiny, tiny_grammar, conditional, unconditional, prompt_widths
) -> None:
    """Else the figures of a second run would be those of a smaller one."""
    for _ in range(2):
        prompt_widths.clear()
        reasoned(backend, tiny, tiny_grammar)
        backend.generate_codes(conditional, unconditional, 3, SAMPLING, [1])
        widths = list(prompt_widths)
    for _ in range(2):
        prompt_widths.clear()
        backend.generate_codes(conditional, unconditional, 3, SAMPLING, [1])
        assert prompt_widths[0] == len(conditional)
    prompt_widths.clear()
    reasoned(backend, tiny, tiny_grammar)
    backend.generate_codes(conditional, unconditional, 3, SAMPLING, [1])
    assert prompt_widths == widths


@pytest.mark.parametrize("block", [1, 8, 512])
def test_growing_memory_changes_nothing(tiny, tiny_grammar, conditional, unconditional, monkeypatch, block) -> None:
    monkeypatch.setattr("acestep.planner.budget._POSITION_BLOCK", block)
    backend, held = PtBackend(tiny), []
    for count, seeds in ((1, [1]), (9, [1]), (9, [1, 2, 3]), (40, [3]), (2, [1, 2])):
        reasoned(backend, tiny, tiny_grammar)
        grown = backend.generate_codes(conditional, unconditional, count, SAMPLING, seeds)
        assert grown.ids == PtBackend(tiny).generate_codes(conditional, unconditional, count, SAMPLING, seeds).ids
        held.append(backend.held_bytes())
    assert held == sorted(held)


def test_memory_is_what_the_budget_counted(backend, tiny, conditional, unconditional) -> None:
    backend.generate_codes(conditional, unconditional, 20, SAMPLING, [1, 2])
    positions = rounded_positions(len(conditional) + 20)
    assert backend.held_bytes() == 4 * positions * PlannerBudget.of(tiny).bytes_per_position


def test_release_frees_everything_and_the_next_run_is_the_same(backend, conditional, unconditional) -> None:
    before = backend.generate_codes(conditional, unconditional, 10, SAMPLING, [1])
    backend.release()
    assert backend.held_bytes() == 0
    assert backend.generate_codes(conditional, unconditional, 10, SAMPLING, [1]) == before


def test_weights_that_were_moved_are_followed(conditional, unconditional) -> None:
    model = build_language_model("acestep-5Hz-lm-tiny", device=torch.device("cpu"), dtype=torch.float32)
    backend = PtBackend(model)
    before = backend.generate_codes(conditional, unconditional, 10, SAMPLING, [1])
    for parameter in model.body.parameters():
        left = parameter.data
        parameter.data = left.clone()
        left.fill_(torch.nan)
    assert backend.generate_codes(conditional, unconditional, 10, SAMPLING, [1]) == before


def test_a_stopped_run_leaves_no_trace(backend, tiny, tiny_grammar, conditional, unconditional) -> None:
    expected = backend.generate_codes(conditional, unconditional, 40, SAMPLING, [1])

    class Stopped(Exception):
        pass

    def stop(report: Progress) -> None:
        assert report.done <= 32
        raise Stopped

    reasoned(backend, tiny, tiny_grammar)
    with pytest.raises(Stopped):
        backend.generate_codes(conditional, unconditional, 400, SAMPLING, [7], stop)
    assert backend.generate_codes(conditional, unconditional, 40, SAMPLING, [1]) == expected


def test_not_a_number_does_not_stay(tiny, conditional, unconditional, monkeypatch) -> None:
    backend = PtBackend(tiny)
    expected = backend.generate_codes(conditional, unconditional, 5, SAMPLING, [1])
    values = tiny.body.layers[0].self_attn.v_proj
    with monkeypatch.context() as patched:
        forward = values.forward
        patched.setattr(values, "forward", lambda hidden: forward(hidden) * torch.nan)
        with pytest.raises(InvalidOutput):
            backend.generate_codes(conditional, unconditional, 5, SAMPLING, [1])
    assert backend.generate_codes(conditional, unconditional, 5, SAMPLING, [1]) == expected


def test_requests_of_several_threads_take_turns(backend, conditional, unconditional) -> None:
    alone = [backend.generate_codes(conditional, unconditional, 20, SAMPLING, [seed]) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(
            pool.map(lambda seed: backend.generate_codes(conditional, unconditional, 20, SAMPLING, [seed]), range(4))
        )
    assert together == alone
