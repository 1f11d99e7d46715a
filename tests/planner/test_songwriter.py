import unicodedata
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep.errors import BackendFailed, BudgetExceeded, InvalidOutput, OutOfMemory
from acestep.planner.backends import PhaseTokens
from acestep.planner.budget import LanguageModel, PlannerBudget
from acestep.planner.metadata import parse_metadata
from acestep.planner.planner import REASONING_TOKEN_LIMIT, Planner
from acestep.planner.prompts import Prompts
from acestep.planner.songwriter import Draft, Songwriter, SongwritingRequest, parse_lyrics
from acestep.types import TEXT_SAMPLING, Progress, SongMetadata

BLOCK = "bpm: 97\ncaption: A rewritten\n  caption\nduration: 42\nkeyscale: D♭ minor\nlanguage: yue\ntimesignature: 3\n"
FOUND = SongMetadata(97, "A rewritten caption", 42, "D♭ minor", "yue", "3")
LYRICS = "# Lyric\n[Verse]\nla la"


class ScriptedBackend:
    """Answers with a given block and given lyrics, and keeps what it was asked."""

    name = "scripted"

    def __init__(self, tiny: LanguageModel, block: str, lyrics: str, ends: tuple[int, ...], error=None) -> None:
        self.vocabulary, self.block, self.lyrics, self.ends, self.error = tiny.vocabulary, block, lyrics, ends, error
        self.reasoning: list[tuple] = []
        self.singing: list[tuple] = []

    def generate_metadata(self, prompt, cursor, sampling, seed, token_limit, progress=None) -> PhaseTokens:
        self.reasoning.append((list(prompt), cursor, sampling, seed))
        ids = (self.vocabulary.layout.think_open, *self.vocabulary.encode("\n" + self.block), *self.ends)
        return PhaseTokens((ids,), len(prompt), len(ids), 0, 0, len(ids))

    def generate_lyrics(self, prompt, sampling, seed, token_limit, progress=None) -> PhaseTokens:
        self.singing.append((list(prompt), sampling, seed, token_limit))
        if self.error is not None:
            raise self.error
        ids = (*self.vocabulary.encode(self.lyrics), self.vocabulary.layout.eos)[:token_limit]
        return PhaseTokens((ids,), len(prompt), len(ids), 0, 0, len(ids))


def scripted(
    tiny: LanguageModel, block: str = BLOCK, lyrics: str = LYRICS, *, ends: tuple[int, ...] = (), error=None, **options
) -> tuple[Songwriter, ScriptedBackend]:
    backend = ScriptedBackend(tiny, block, lyrics, ends, error)
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
    return Songwriter(planner), backend


def request(tiny: LanguageModel, **changes) -> SongwritingRequest:
    usual = {
        "prompt": Prompts(tiny.vocabulary).inspire("rain", instrumental=False),
        "given": SongMetadata(),
        "sampling": TEXT_SAMPLING,
        "seed": 1,
        "use_constrained_decoding": True,
        "lyrics_token_limit": 100,
    }
    return SongwritingRequest(**{**usual, **changes})


@pytest.fixture(scope="module")
def songwriter(tiny: LanguageModel) -> Songwriter:
    return Songwriter(Planner.from_language_model(tiny))


def block_of(tiny: LanguageModel, draft: Draft) -> str:
    return tiny.vocabulary.decode(draft.metadata_tokens.ids[0])


def test_metadata_and_lyrics_are_read(tiny: LanguageModel) -> None:
    writer, _ = scripted(tiny)
    draft = writer.write(request(tiny))
    assert draft.metadata == FOUND
    assert (draft.lyrics, draft.lyrics_complete) == ("[Verse]\nla la", True)
    assert draft.phases == (draft.metadata_tokens, draft.lyrics_tokens)


def test_the_lyrics_follow_the_closed_block(tiny: LanguageModel) -> None:
    """As in training: the block, ``</think>``, an empty line, and the turn is open."""
    writer, backend = scripted(tiny)
    asked = request(tiny)
    writer.write(asked)
    prompt = backend.singing[0][0]
    assert prompt[: len(asked.prompt)] == asked.prompt
    assert tiny.vocabulary.decode(prompt[len(asked.prompt) :]) == f"<think>\n{BLOCK}</think>\n\n"


def test_lyrics_that_were_cut_are_not_complete(tiny: LanguageModel) -> None:
    writer, backend = scripted(tiny)
    draft = writer.write(request(tiny, lyrics_token_limit=5))
    assert not draft.lyrics_complete
    assert backend.singing[0][3] == 5


def test_without_words_there_are_no_lyrics(tiny: LanguageModel) -> None:
    writer, _ = scripted(tiny, lyrics="# Lyric\n")
    assert writer.write(request(tiny)).lyrics == ""


def test_b11_a_given_language_is_shown_to_the_model_and_returned(songwriter: Songwriter, tiny: LanguageModel) -> None:
    """The reference leaves it out of the block when a draft is formatted, and loses it."""
    draft = songwriter.write(request(tiny, given=SongMetadata(language="no")))
    assert "\nlanguage: 'no'\n" in block_of(tiny, draft)
    assert draft.metadata.language == "no"


def test_b18_given_values_are_forced(songwriter: Songwriter, tiny: LanguageModel) -> None:
    given = SongMetadata(bpm=77, duration=61, keyscale="E♭ major", language="ja", timesignature="6")
    draft = songwriter.write(request(tiny, given=given))
    assert replace(draft.metadata, caption=None) == given
    assert parse_metadata(block_of(tiny, draft)) == draft.metadata


def test_b17_the_block_has_every_field_but_no_genres(songwriter: Songwriter, tiny: LanguageModel) -> None:
    """The reference scans a vocabulary of 178,571 lines for every token of a field that nothing reads."""
    for seed in range(5):
        draft = songwriter.write(request(tiny, seed=seed, lyrics_token_limit=5))
        assert None not in (getattr(draft.metadata, name) for name in draft.metadata.__dataclass_fields__)
        assert "genres:" not in block_of(tiny, draft)


def test_b13_b22_no_code_and_no_special_token_in_the_words(songwriter: Songwriter, tiny: LanguageModel) -> None:
    """In the reference codes, turn marks and thoughts can appear in captions and lyrics."""
    layout = tiny.vocabulary.layout
    for seed in range(5):
        draft = songwriter.write(request(tiny, seed=seed, sampling=replace(TEXT_SAMPLING, temperature=2.0)))
        assert set(draft.lyrics_tokens.ids[0][:-1]) <= set(tiny.vocabulary.text_ids.tolist())
        special = {token_id for token_id in draft.metadata_tokens.ids[0] if token_id in (layout.eos, layout.pad)}
        assert not special
        assert max(draft.metadata_tokens.ids[0]) < layout.code_base
        assert "<|" not in draft.metadata.caption


def test_the_same_seed_writes_the_same_song(songwriter: Songwriter, tiny: LanguageModel) -> None:
    torch.manual_seed(1)
    first, again, other = (songwriter.write(request(tiny, seed=seed)) for seed in (3, 3, 4))
    assert first == again
    assert (first.metadata, first.lyrics) != (other.metadata, other.lyrics)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    songwriter.write(request(tiny))
    assert torch.equal(before, torch.get_rng_state())


def test_without_a_grammar_what_can_be_read_is_kept(tiny: LanguageModel) -> None:
    close = tiny.vocabulary.layout.think_close
    writer, backend = scripted(tiny, "bpm: 999\nkeyscale: C Major\nduration: 900\nduration: 500\n", ends=(close,))
    draft = writer.write(request(tiny, use_constrained_decoding=False, given=SongMetadata(language="en")))
    assert backend.reasoning[0][1] is None
    assert draft.metadata == SongMetadata(duration=500, keyscale="C major", language="en")
    assert backend.singing[0][0].count(close) == 1


def test_without_a_grammar_a_turn_that_ends_early_has_no_lyrics(tiny: LanguageModel) -> None:
    for ends in ((), (tiny.vocabulary.layout.eos,)):
        writer, backend = scripted(tiny, ends=ends)
        draft = writer.write(request(tiny, use_constrained_decoding=False))
        assert (draft.metadata, draft.lyrics, draft.lyrics_tokens) == (FOUND, "", None)
        assert draft.phases == (draft.metadata_tokens,)
        assert not backend.singing


def test_an_empty_answer_is_an_error(tiny: LanguageModel) -> None:
    writer, _ = scripted(tiny, "mumbling\n")
    with pytest.raises(InvalidOutput, match="neither valid metadata nor lyrics") as caught:
        writer.write(request(tiny, use_constrained_decoding=False))
    assert caught.value.stage == "lm.cot"


def test_a_lower_limit_of_the_machine_applies_to_the_model_too(tiny: LanguageModel) -> None:
    writer, _ = scripted(tiny, BLOCK.replace("42", "500"), duration_limit=240)
    assert writer.write(request(tiny, use_constrained_decoding=False)).metadata.duration == 240


def test_b6_what_cannot_fit_is_refused_before_anything_runs(tiny: LanguageModel) -> None:
    asked = request(tiny)
    needed = len(asked.prompt) + REASONING_TOKEN_LIMIT + asked.lyrics_token_limit
    writer, backend = scripted(tiny, budget=replace(PlannerBudget.of(tiny), context_limit=needed))
    with pytest.raises(BudgetExceeded, match=str(needed)):
        writer.write(asked)
    assert not backend.reasoning


def test_the_longest_song_can_be_understood(songwriter: Songwriter, tiny: LanguageModel) -> None:
    """3,000 codes of 600 s, the block and 2,048 tokens of lyrics fit the context."""
    prompt = Prompts(tiny.vocabulary).understand(range(3_000))
    limits = PlannerBudget.of(tiny)
    limits.check("lm.lyrics", prompt_tokens=len(prompt), output_tokens=REASONING_TOKEN_LIMIT + 4 + 2_048, rows=1)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(torch.OutOfMemoryError("full"), OutOfMemory), (torch.AcceleratorError("broken"), BackendFailed)],
)
def test_b28_a_failure_is_a_typed_error_with_its_stage(tiny: LanguageModel, raised, expected) -> None:
    """The reference returns a text that starts with an emoji."""
    writer, _ = scripted(tiny, error=raised)
    with pytest.raises(expected) as caught:
        writer.write(request(tiny))
    assert (caught.value.stage, caught.value.__cause__) == ("lm.lyrics", raised)


def test_b31_every_token_is_reported_and_can_stop_the_run(songwriter: Songwriter, tiny: LanguageModel) -> None:
    seen: list[Progress] = []
    draft = songwriter.write(request(tiny, lyrics_token_limit=20), seen.append)
    assert [report.stage for report in seen] == ["lm.cot"] * draft.metadata_tokens.sampled_tokens + ["lm.lyrics"] * len(
        draft.lyrics_tokens.ids[0]
    )

    class Stopped(Exception):
        pass

    def stop(report: Progress) -> None:
        if report.stage == "lm.lyrics":
            raise Stopped

    with pytest.raises(Stopped):
        songwriter.write(request(tiny), stop)


WORDS = "[Verse 1]\nWho hears the river"


@pytest.mark.parametrize(
    "written",
    [
        WORDS,
        f"\n\n{WORDS}\n\n",
        f"# Lyric\n{WORDS}",
        f"# Lyrics\n{WORDS}",
        f"#lyric\n\n{WORDS}",
        f"# Languages\nen\n\n# Lyric\n{WORDS}",
        f"# Languages\nen\n\n{WORDS}",
        f"# Language\n\n# Lyrics\n{WORDS}",
        f"<think>\nbpm: 90\n</think>\n\n# Lyric\n{WORDS}<|im_end|>",
        f"{WORDS}<|im_end|>\n<|endoftext|>",
        f"{WORDS}  \n<|audio_code_64001|>",
        f"\ufffd{WORDS}\x07",
    ],
)
def test_headings_and_special_tokens_are_no_lyrics(written: str) -> None:
    """The reference leaves ``# Lyrics`` and the language preamble in."""
    assert parse_lyrics(written) == WORDS


def test_only_one_heading_is_removed() -> None:
    assert parse_lyrics("# Lyric\n# Lyric\nla") == "# Lyric\nla"
    assert parse_lyrics(f"{WORDS}\n\n# Lyric\nla") == f"{WORDS}\n\n# Lyric\nla"


@pytest.mark.parametrize("word", ["# Lyrical\nla", "# lyricist", "Lyrics\nla", "#1\nla"])
def test_words_that_look_like_a_heading_stay(word: str) -> None:
    assert parse_lyrics(word) == word


@pytest.mark.parametrize(
    "nothing", ["", "\n\n", "# Lyric\n", "# Lyrics", "# Languages\nen\n", "<|im_end|>", "</think>\n\n"]
)
def test_nothing_is_nothing(nothing: str) -> None:
    assert parse_lyrics(nothing) == ""


@pytest.mark.parametrize("text", ["夜の駅で\n君の声を", "Der Regen – schreibt", "يا ليل", "[Chorus]\n\n\nla"])
def test_words_of_every_script_pass_unchanged(text: str) -> None:
    assert parse_lyrics(text) == text


lines = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters="<>\ufffd"), max_size=20)


@given(st.lists(lines, max_size=8).map("\n".join), st.sampled_from(["", "# Lyric\n", "# Languages\nen\n\n# Lyrics\n"]))
def test_words_survive_any_heading(words: str, heading: str) -> None:
    clean = "\n".join(line.rstrip() for line in words.split("\n")).strip()
    if not clean.startswith("#"):
        assert parse_lyrics(f"<think>\nbpm: 90\n</think>\n\n{heading}{words}<|im_end|>") == clean


@given(st.text())
def test_no_output_reaches_a_terminal_as_control_characters(text: str) -> None:
    for character in parse_lyrics(text):
        assert character.isspace() or unicodedata.category(character) not in ("Cc", "Cs")
