from dataclasses import replace

import pytest
import torch

from acestep.errors import AceStepError, BackendFailed, BudgetExceeded, InvalidOutput, InvalidRequest, OutOfMemory
from acestep.offloading import ModelOffloader
from acestep.planner.backends import PhaseTokens
from acestep.planner.budget import LanguageModel, PlannerBudget
from acestep.planner.planner import Planner
from acestep.planner.prompts import Prompts
from acestep.types import GenerationRequest, Placement, Progress, SamplingSettings, SongMetadata
from tests.planner.plan_requests import asks

COMPLETE = SongMetadata(bpm=120, duration=60, keyscale="F# minor", timesignature="4")
ANSWER = "bpm: 97\ncaption: A rewritten\n  caption\nduration: 42\nkeyscale: D♭ minor\nlanguage: yue\ntimesignature: 3\n"


class ScriptedBackend:
    """Answers phase 1 with a given text, phase 2 with codes counted up, and keeps what it was asked."""

    name = "scripted"

    def __init__(self, vocabulary, answer: str = ANSWER, codes_error: BaseException | None = None) -> None:
        self.vocabulary, self.answer, self.codes_error = vocabulary, answer, codes_error
        self.reasoning: list[tuple] = []
        self.composing: list[tuple] = []

    def generate_metadata(self, prompt, cursor, sampling, seed, token_limit, progress=None) -> PhaseTokens:
        self.reasoning.append((list(prompt), cursor, seed))
        ids = (self.vocabulary.layout.think_open, *self.vocabulary.encode("\n" + self.answer))
        return PhaseTokens((ids,), len(prompt), len(ids), 0, 0, len(ids))

    def generate_codes(self, conditional, unconditional, count, sampling, seeds, progress=None) -> PhaseTokens:
        self.composing.append((conditional, unconditional, count, tuple(seeds)))
        if self.codes_error is not None:
            raise self.codes_error
        ids = tuple(tuple(self.vocabulary.code_to_id(code) for code in range(count)) for _ in seeds)
        return PhaseTokens(ids, len(conditional), count * len(seeds), 0, 0, count)


def scripted(tiny: LanguageModel, answer: str = ANSWER, **options) -> tuple[Planner, ScriptedBackend]:
    backend = ScriptedBackend(tiny.vocabulary, answer, options.pop("codes_error", None))
    budget = options.pop("budget", PlannerBudget.of(tiny))
    planner = Planner(
        backend,
        tiny.vocabulary,
        model_name="m",
        weights="synthetic",
        device=tiny.device,
        dtype=tiny.dtype,
        budget=budget,
        **options,
    )
    return planner, backend


def request(**changes) -> GenerationRequest:
    return GenerationRequest(**{"caption": "calm piano", "lyrics": "[Verse]\nhello", **changes})


@pytest.fixture(scope="module")
def planner(tiny: LanguageModel) -> Planner:
    return Planner.from_language_model(tiny)


# Phase 1: whether it runs


@pytest.mark.parametrize(
    ("changes", "runs"),
    [
        ({"thinking": True, "metadata": COMPLETE}, False),
        ({"thinking": True, "use_cot_metas": True, "metadata": COMPLETE}, False),
        ({"thinking": True, "duration": 30.0}, False),
        ({"thinking": True}, True),
        ({"thinking": True, "use_cot_metas": True, "duration": 30.0}, True),
        ({"use_cot_metas": True, "metadata": replace(COMPLETE, bpm=None)}, True),
        ({"use_cot_caption": True, "metadata": COMPLETE}, True),
        ({"use_cot_language": True, "metadata": COMPLETE}, True),
        ({"use_cot_language": True, "metadata": replace(COMPLETE, language="en")}, False),
        ({"use_cot_language": True, "metadata": replace(COMPLETE, language="unknown")}, True),
        ({"thinking": True, "audio_codes": (1, 2, 3)}, False),
    ],
)
def test_b10_phase_one_runs_exactly_when_something_is_open(tiny: LanguageModel, changes: dict, runs: bool) -> None:
    """The reference looks at which fields are named, and then forgets about caption and language."""
    planner, backend = scripted(tiny)
    plan = planner.plan(asks(request(**changes), [1]))
    assert (len(backend.reasoning) == 1) == runs == (plan.metadata_tokens is not None)


def test_b9_a_batch_has_one_set_of_metadata(tiny: LanguageModel) -> None:
    """The reference reasons again for every chunk of a batch, and uses the first result for all."""
    planner, backend = scripted(tiny)
    planner.plan(asks(request(thinking=True, use_cot_metas=True, batch_size=8), range(8)))
    assert len(backend.reasoning) == len(backend.composing) == 1
    assert backend.composing[0][3] == tuple(range(8))


# Phase 1: what it decides


def test_what_was_asked_for_is_taken_from_the_model(tiny: LanguageModel) -> None:
    planner, _ = scripted(tiny)
    everything = {"use_cot_metas": True, "use_cot_caption": True, "use_cot_language": True}
    assert planner.plan(asks(request(**everything), [1])).metadata == SongMetadata(
        97, "A rewritten caption", 42, "D♭ minor", "yue", "3"
    )


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("use_cot_metas", SongMetadata(bpm=97, duration=42, keyscale="D♭ minor", timesignature="3")),
        ("use_cot_caption", SongMetadata(caption="A rewritten caption")),
        ("use_cot_language", SongMetadata(language="yue")),
        ("thinking", SongMetadata(duration=42)),
    ],
)
def test_what_was_not_asked_for_is_left_open(tiny: LanguageModel, flag: str, expected: SongMetadata) -> None:
    planner, _ = scripted(tiny)
    assert planner.plan(asks(request(**{flag: True}), [1])).metadata == expected


def test_the_users_values_win(tiny: LanguageModel) -> None:
    planner, _ = scripted(tiny)
    given = SongMetadata(bpm=150, duration=99, keyscale="Am", language="EN", timesignature="6/8")
    plan = planner.plan(
        asks(request(metadata=given, use_cot_metas=True, use_cot_caption=True, use_cot_language=True), [1])
    )
    assert plan.metadata == SongMetadata(150, "A rewritten caption", 99, "A minor", "en", "6")


def test_b7_the_language_reaches_the_model_and_comes_back(tiny: LanguageModel) -> None:
    """The reference drops the detected language and never passes the user's to the model."""
    planner, backend = scripted(tiny)
    plan = planner.plan(asks(request(thinking=True, duration=30.0, use_cot_language=True), [1]))
    assert plan.metadata.language == "yue"
    assert "language: yue" in tiny.vocabulary.decode(backend.composing[0][0])
    given = SongMetadata(language="ja")
    planner.plan(asks(request(thinking=True, use_cot_metas=True, metadata=given), [1]))
    cursor = backend.reasoning[-1][1]
    written = ""
    while not cursor.done:
        written += tiny.vocabulary.decode(cursor.forced())
        if not cursor.done:
            cursor.accept(int(cursor.allowed().ids[0]))
    assert "language: ja" in written


def test_the_model_really_writes_the_users_values(planner: Planner, tiny: LanguageModel) -> None:
    given = SongMetadata(bpm=77, keyscale="E♭ major", language="no")
    plan = planner.plan(asks(request(metadata=given, use_cot_metas=True), [3]))
    text = tiny.vocabulary.decode(plan.metadata_tokens.ids[0])
    assert text.startswith("<think>\nbpm: 77\nduration: ")
    assert "\nkeyscale: E♭ major\nlanguage: 'no'\n" in text
    assert plan.metadata.timesignature in ("2", "3", "4", "6")
    assert 10 <= plan.metadata.duration <= 600


@pytest.mark.parametrize("caption", [True, False])
def test_the_caption_is_in_the_block_only_when_asked_for(planner: Planner, tiny: LanguageModel, caption: bool) -> None:
    plan = planner.plan(asks(request(use_cot_metas=True, use_cot_caption=caption), [3]))
    assert ("\ncaption:" in tiny.vocabulary.decode(plan.metadata_tokens.ids[0])) == caption
    assert (plan.metadata.caption is not None) == caption


# Phase 2


@pytest.mark.parametrize(("duration", "count"), [(10.0, 50), (12.34, 61), (30.0, 150), (240.0, 1200), (600.0, 3000)])
def test_b5_five_codes_per_second_exactly(tiny: LanguageModel, duration: float, count: int) -> None:
    """The reference clamps one of two lengths, and stops early without a word."""
    planner, backend = scripted(tiny)
    plan = planner.plan(asks(request(thinking=True, duration=duration, batch_size=2), [1, 2]))
    assert [len(codes) for codes in plan.codes] == [count, count]
    assert f"duration: {int(duration)}\n" in tiny.vocabulary.decode(backend.composing[0][0])


def test_b4_the_models_duration_is_the_length_of_the_codes(tiny: LanguageModel) -> None:
    """In the reference it is not, and the codes end anywhere."""
    planner, _ = scripted(tiny)
    plan = planner.plan(asks(request(thinking=True, use_cot_metas=True), [1]))
    assert [len(codes) for codes in plan.codes] == [42 * 5]


def test_the_prompt_keeps_the_users_caption_beside_the_rewritten_one(tiny: LanguageModel) -> None:
    planner, backend = scripted(tiny)
    planner.plan(asks(request(thinking=True, duration=30.0, use_cot_caption=True), [1]))
    metadata = SongMetadata(caption="A rewritten caption", duration=30)
    assert backend.composing[0][0] == Prompts(tiny.vocabulary).codes("calm piano", "[Verse]\nhello", metadata)


@pytest.mark.parametrize(
    ("scale", "negative", "expected"), [(1.0, "", None), (2.0, "", "NO USER INPUT"), (2.0, "x", "x")]
)
def test_guidance_has_its_prompt(tiny: LanguageModel, scale: float, negative: str, expected: str | None) -> None:
    planner, backend = scripted(tiny)
    sampling = SamplingSettings(guidance_scale=scale, negative_prompt=negative)
    planner.plan(asks(request(thinking=True, duration=30.0, sampling=sampling), [1]))
    unconditional = backend.composing[0][1]
    if expected is None:
        assert unconditional is None
    else:
        assert f"user\n{expected}<|im_end|>" in tiny.vocabulary.decode(unconditional)


def test_codes_of_the_user_are_not_written_again(tiny: LanguageModel) -> None:
    planner, backend = scripted(tiny)
    plan = planner.plan(asks(request(thinking=True, audio_codes=(1, 2), metadata=COMPLETE), [1]))
    assert (plan.codes, backend.composing) == ((), [])


def test_a_whole_plan_with_the_tiny_model(planner: Planner) -> None:
    seen: list[Progress] = []
    asked = request(thinking=True, use_cot_metas=True, use_cot_caption=True, duration=12.0, batch_size=2)
    plan = planner.plan(asks(asked, [1, 2]), seen.append)
    assert [len(codes) for codes in plan.codes] == [60, 60]
    assert plan.codes[0] != plan.codes[1]
    assert all(0 <= code < 64_000 for codes in plan.codes for code in codes)
    assert {report.stage for report in seen} == {"lm.cot", "lm.codes"}
    assert planner.plan(asks(asked, [1, 2])) == plan
    assert plan.metadata_tokens.forced_tokens > 0 < plan.code_tokens.unconditional_tokens


def test_b8_no_metadata_and_no_reasoning_is_fine(planner: Planner) -> None:
    """The reference dies on both of these."""
    assert len(planner.plan(asks(request(thinking=True, duration=10.0), [1])).codes[0]) == 50
    numeric = SongMetadata(timesignature=4)  # type: ignore[arg-type]
    assert (
        planner.plan(asks(request(thinking=True, duration=10.0, metadata=numeric), [1])).metadata.timesignature == "4"
    )


# Unconstrained decoding


def test_free_text_is_read_as_far_as_it_makes_sense(tiny: LanguageModel) -> None:
    planner, backend = scripted(tiny, "bpm: 9999\nduration: 80\nkeyscale: nonsense\n</think>")
    plan = planner.plan(asks(request(thinking=True, use_cot_metas=True, use_constrained_decoding=False), [1]))
    assert backend.reasoning[0][1] is None
    assert plan.metadata == SongMetadata(duration=80)
    assert len(plan.codes[0]) == 400


def test_free_text_without_a_duration_is_an_error_that_keeps_the_rest(tiny: LanguageModel) -> None:
    planner, _ = scripted(tiny, "bpm: 90\n")
    with pytest.raises(InvalidOutput, match="wrote no duration") as caught:
        planner.plan(asks(request(thinking=True, use_cot_metas=True, use_constrained_decoding=False), [1]))
    assert caught.value.metadata == SongMetadata(bpm=90)


def test_free_text_above_the_limit_is_cut(tiny: LanguageModel) -> None:
    planner, _ = scripted(tiny, "duration: 500\n", duration_limit=240)
    plan = planner.plan(asks(request(thinking=True, use_constrained_decoding=False), [1]))
    assert len(plan.codes[0]) == 240 * 5


# Limits and failures


@pytest.mark.parametrize("duration", [5.0, 9.99, 600.5, 1e9])
def test_durations_outside_are_refused(tiny: LanguageModel, duration: float) -> None:
    planner, backend = scripted(tiny)
    with pytest.raises(InvalidRequest, match=r"`duration` .* is out of range: 10 \.\.\. 600 s"):
        planner.plan(asks(request(thinking=True, duration=duration), [1]))
    assert not backend.reasoning


def test_b5_a_lower_limit_of_the_machine_is_named(tiny: LanguageModel) -> None:
    planner, _ = scripted(tiny, duration_limit=240)
    with pytest.raises(InvalidRequest, match=r"`duration` 300 s is out of range: 10 \.\.\. 240 s"):
        planner.plan(asks(request(thinking=True, duration=300.0), [1]))


def test_b6_what_cannot_fit_is_refused_before_anything_runs(tiny: LanguageModel) -> None:
    planner, backend = scripted(tiny, budget=replace(PlannerBudget.of(tiny), context_limit=1000))
    with pytest.raises(BudgetExceeded, match="1000"):
        planner.plan(asks(request(thinking=True, use_cot_metas=True, duration=300.0), [1]))
    assert not backend.reasoning


def test_b6_lyrics_longer_than_the_context_are_refused(planner: Planner) -> None:
    with pytest.raises(BudgetExceeded, match="shorten the lyrics"):
        planner.plan(asks(request(lyrics="la " * 9000, use_cot_metas=True), [1]))


def test_b2_memory_counts_every_row(tiny: LanguageModel) -> None:
    limits = PlannerBudget.of(tiny)
    two_rows = 2 * 512 * limits.bytes_per_position  # the request takes fewer than 512 positions
    planner, backend = scripted(tiny, budget=replace(limits, free_bytes=lambda: two_rows))
    planner.plan(asks(request(thinking=True, duration=10.0), [1]))
    with pytest.raises(BudgetExceeded, match="16 rows"):
        planner.plan(asks(request(thinking=True, duration=10.0), range(8)))
    assert len(backend.composing) == 1


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(torch.OutOfMemoryError("full"), OutOfMemory), (torch.AcceleratorError("broken"), BackendFailed)],
)
def test_b32_a_failed_second_phase_keeps_what_the_first_decided(
    tiny: LanguageModel, raised: Exception, expected: type[AceStepError]
) -> None:
    """In the reference one failure throws the metadata away as well."""
    planner, _ = scripted(tiny, codes_error=raised)
    with pytest.raises(expected) as caught:
        planner.plan(asks(request(thinking=True, use_cot_metas=True), [1]))
    assert caught.value.stage == "lm.codes"
    assert caught.value.metadata == SongMetadata(bpm=97, duration=42, keyscale="D♭ minor", timesignature="3")
    assert caught.value.__cause__ is raised


def test_a_cancelled_run_raises_what_the_callback_raised(planner: Planner) -> None:
    def stop(report: Progress) -> None:
        if report.stage == "lm.codes":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        planner.plan(asks(request(thinking=True, use_cot_metas=True, duration=10.0), [1]), stop)


# What calibration asks


def test_the_shape_of_the_codes_is_known_beforehand(planner: Planner) -> None:
    shape = planner.codes_shape(request(thinking=True, duration=30.0))
    assert shape.count == 150
    assert shape.middle_context == shape.prompt_tokens + 75
    assert (
        shape.prompt_tokens == planner.plan(asks(request(thinking=True, duration=30.0), [1])).code_tokens.prompt_tokens
    )
    assert planner.codes_shape(request(thinking=True)).count == 600


@pytest.mark.parametrize("waits", [True, False])
def test_keys_and_values_leave_with_the_weights(tiny, monkeypatch, waits):
    offloader = ModelOffloader(torch.device("cpu", 0), Placement(offload_to_cpu=waits))
    planner = Planner.from_language_model(tiny, offloader=offloader)
    with planner.on_device():
        inside = planner.plan(asks(request(use_cot_metas=True), [1]))
        assert planner.backend.held_bytes() > 0
    assert (planner.backend.held_bytes() == 0) == waits
    with planner.on_device():
        assert planner.plan(asks(request(use_cot_metas=True), [1])) == inside
