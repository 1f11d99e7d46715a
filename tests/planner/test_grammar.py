import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep.planner.grammar import CAPTION_TOKEN_LIMIT, GrammarCursor, MetadataGrammar
from acestep.planner.metadata import KEYSCALES, LANGUAGES, TIME_SIGNATURES, dump_metadata, parse_metadata
from acestep.planner.vocabulary import Vocabulary
from acestep.synthetic.language_model import TINY_LAYOUT
from acestep.synthetic.tokenizer import build_tokenizer
from acestep.types import SongMetadata

TINY = Vocabulary(build_tokenizer(TINY_LAYOUT), TINY_LAYOUT)
TINY_GRAMMAR = MetadataGrammar(TINY)
COMPLETE = SongMetadata(bpm=120, duration=60, keyscale="F# minor", language="no", timesignature="4")

GIVEN = st.builds(
    SongMetadata,
    bpm=st.none() | st.integers(30, 300),
    caption=st.none() | st.just("It's: a caption"),
    duration=st.none() | st.integers(10, 600),
    keyscale=st.none() | st.sampled_from(KEYSCALES),
    language=st.none() | st.sampled_from(LANGUAGES),
    timesignature=st.none() | st.sampled_from(TIME_SIGNATURES),
)


def start(
    grammar: MetadataGrammar, known: SongMetadata | None = None, *, caption: bool = False, language: bool = True
) -> GrammarCursor:
    return grammar.cursor(known or SongMetadata(), with_caption=caption, with_language=language)


def write_randomly(cursor: GrammarCursor, choice: random.Random) -> Iterator[int]:
    """Every token is drawn evenly from what is allowed."""
    yield from cursor.forced()
    while not cursor.done:
        token_id = int(choice.choice(cursor.allowed().ids))
        cursor.accept(token_id)
        yield token_id
        yield from cursor.forced()


def follow(cursor: GrammarCursor, ids: list[int]) -> None:
    for token_id in ids:
        cursor.accept(token_id)


def block_ids(vocabulary: Vocabulary, metadata: SongMetadata) -> list[int]:
    return [vocabulary.layout.think_open, *vocabulary.encode(f"\n{dump_metadata(metadata)}\n")]


@settings(deadline=None)
@given(GIVEN, st.booleans(), st.booleans(), st.integers(0, 2**32))
def test_every_output_is_read_as_the_values_that_were_written(
    known: SongMetadata, caption: bool, language: bool, seed: int
) -> None:
    cursor = TINY_GRAMMAR.cursor(known, with_caption=caption, with_language=language, caption_token_limit=40)
    ids = list(write_randomly(cursor, random.Random(seed)))
    text = TINY.decode(ids)
    found = parse_metadata(text)
    assert cursor.done
    for name in SongMetadata.__slots__:
        if getattr(known, name) is not None:
            assert getattr(found, name) == getattr(known, name)
    assert None not in (found.bpm, found.duration, found.keyscale, found.timesignature)
    assert (found.language is not None) == (language or known.language is not None)
    if known.caption is None:
        assert ("\ncaption:" in text) == caption


@settings(deadline=None)
@given(GIVEN, st.booleans(), st.integers(0, 2**32))
def test_b13_no_special_token_or_code_is_ever_allowed_in_the_block(
    known: SongMetadata, caption: bool, seed: int
) -> None:
    """The reference allows end-of-turn and invalid codes inside captions."""
    cursor = TINY_GRAMMAR.cursor(known, with_caption=caption, with_language=True, caption_token_limit=40)
    choice = random.Random(seed)
    assert cursor.forced()[0] == TINY_LAYOUT.think_open
    while not cursor.done:
        ids = cursor.allowed().ids
        assert ids[-1] < TINY_LAYOUT.pad
        cursor.accept(int(choice.choice(ids)))


@pytest.mark.parametrize(
    "values",
    [
        [SongMetadata(bpm=bpm) for bpm in range(30, 301)],
        [SongMetadata(duration=duration) for duration in range(10, 601)],
        [SongMetadata(keyscale=keyscale) for keyscale in KEYSCALES],
        [SongMetadata(language=language) for language in LANGUAGES],
        [SongMetadata(timesignature=signature) for signature in TIME_SIGNATURES],
    ],
    ids=["bpm", "duration", "keyscale", "language", "timesignature"],
)
def test_every_legal_value_can_be_written_in_the_tokenizers_own_ids(
    qwen: Vocabulary, qwen_grammar: MetadataGrammar, values: list[SongMetadata]
) -> None:
    for value in values:
        known = {name: getattr(value, name) or getattr(COMPLETE, name) for name in SongMetadata.__slots__}
        cursor = start(qwen_grammar)
        follow(cursor, block_ids(qwen, SongMetadata(**known)))
        assert cursor.done


def test_b12_field_names_are_forced_in_the_tokenizers_own_ids(qwen: Vocabulary, qwen_grammar: MetadataGrammar) -> None:
    """The reference forces ``bp``, ``m`` for a name that the model was trained to read as ``b``, ``pm``."""
    assert start(qwen_grammar).forced() == [qwen.layout.think_open, 198, 65, 5187, 25, 220]


def test_b14_the_norwegian_language_is_quoted_as_in_training(qwen: Vocabulary, qwen_grammar: MetadataGrammar) -> None:
    cursor = start(qwen_grammar, COMPLETE)
    assert "\nlanguage: 'no'\n" in qwen.decode(cursor.forced())


def test_captions_of_the_training_layout_are_accepted(qwen: Vocabulary, qwen_grammar: MetadataGrammar) -> None:
    for caption in ("Warm pads.", "80s synth pop", "温暖的钢琴", "word " * 40 + "end.", "a line that ends in 5 " * 9):
        known = SongMetadata(120, caption.strip(), 60, "C major", "en", "4")
        cursor = start(qwen_grammar, caption=True)
        follow(cursor, block_ids(qwen, known))
        assert cursor.done


def test_everything_given_leaves_no_choice(qwen: Vocabulary, qwen_grammar: MetadataGrammar) -> None:
    cursor = start(qwen_grammar, COMPLETE)
    assert cursor.forced() == block_ids(qwen, COMPLETE)
    assert cursor.done


def test_b19_a_given_duration_has_its_space(qwen: Vocabulary, qwen_grammar: MetadataGrammar) -> None:
    """The reference's second way of forcing a duration forgets the space, and dies on -1."""
    cursor = start(qwen_grammar, SongMetadata(bpm=100, duration=60))
    assert "\nduration: 60\n" in qwen.decode(cursor.forced())


def test_b15_after_a_newline_a_caption_goes_on_or_ends(qwen: Vocabulary, qwen_grammar: MetadataGrammar) -> None:
    """The reference lets the model write anything up to the next colon."""
    cursor = start(qwen_grammar, SongMetadata(bpm=100), caption=True)
    cursor.forced()
    follow(cursor, qwen.encode(" Warm.\n"))
    indentation, duration = qwen.encode(" ")[0], qwen.encode("duration:")[0]
    assert set(cursor.allowed().ids.tolist()) == {indentation, duration}


def test_b15_a_caption_has_no_blank_lines_and_is_not_empty(qwen: Vocabulary, qwen_grammar: MetadataGrammar) -> None:
    cursor = start(qwen_grammar, SongMetadata(bpm=100), caption=True)
    cursor.forced()
    newline, blank = qwen.encode("\n")[0], qwen.encode("\n\n")[0]
    assert newline not in cursor.allowed()
    follow(cursor, qwen.encode(" Warm"))
    assert newline in cursor.allowed()
    assert blank not in cursor.allowed()


@pytest.mark.parametrize("skipped", ["caption", "language"])
def test_b16_a_skipped_field_cannot_be_written(qwen: Vocabulary, qwen_grammar: MetadataGrammar, skipped: str) -> None:
    """In the reference the model can enter a skipped field, and never leaves it."""
    cursor = start(qwen_grammar, caption=skipped != "caption", language=skipped != "language")
    text = qwen.decode(write_randomly(cursor, random.Random(5)))
    assert f"\n{skipped}:" not in text
    assert parse_metadata(text).timesignature is not None


@pytest.mark.parametrize("limit", [3, 4, 7, 8, 30])
@pytest.mark.parametrize("seed", range(20))
def test_an_endless_caption_ends_at_its_limit(limit: int, seed: int) -> None:
    cursor = TINY_GRAMMAR.cursor(
        SongMetadata(bpm=100), with_caption=True, with_language=False, caption_token_limit=limit
    )
    cursor.forced()
    choice, written = random.Random(seed), 0
    end = TINY.encode("duration:")[0]
    while endless := [token_id for token_id in cursor.allowed().ids.tolist() if token_id != end]:
        cursor.accept(choice.choice(endless))
        written += 1
    assert cursor.allowed().ids.tolist() == [end]
    assert limit - 3 <= written <= limit


def test_the_limit_of_captions_is_that_of_the_reference() -> None:
    assert CAPTION_TOKEN_LIMIT == 512


def test_the_duration_stays_below_its_limit(qwen: Vocabulary) -> None:
    grammar = MetadataGrammar(qwen, duration_limit=240)
    cursor = start(grammar, SongMetadata(bpm=100))
    cursor.forced()
    follow(cursor, qwen.encode("24"))
    assert {qwen.decode([token_id]) for token_id in cursor.allowed().ids} == {"0", "\n"}


def test_b20_cursors_of_one_grammar_do_not_share_state() -> None:
    """The reference has one state machine per process, and rows of a batch drift."""
    one, other = start(TINY_GRAMMAR), start(TINY_GRAMMAR)
    one.forced()
    assert other.forced()[0] == TINY_LAYOUT.think_open
    one.accept(int(one.allowed().ids[0]))
    fresh = start(TINY_GRAMMAR)
    fresh.forced()
    assert fresh.allowed() is other.allowed()


def test_states_are_compiled_once_so_that_backends_can_keep_their_masks() -> None:
    allowed = []
    for _ in range(2):
        cursor = start(TINY_GRAMMAR, SongMetadata(bpm=100), caption=True)
        cursor.forced()
        allowed.append(cursor.allowed())
    assert allowed[0] is allowed[1]


def test_what_is_not_allowed_is_refused() -> None:
    cursor = start(TINY_GRAMMAR)
    with pytest.raises(ValueError, match=f"token {TINY_LAYOUT.eos} is not allowed here"):
        cursor.accept(TINY_LAYOUT.eos)
    done = start(TINY_GRAMMAR, COMPLETE)
    done.forced()
    with pytest.raises(ValueError, match="complete"):
        done.allowed()


def test_b17_there_is_no_genres_field(qwen: Vocabulary, qwen_grammar: MetadataGrammar) -> None:
    """The reference's genre vocabulary can eat the name of the field behind it."""
    text = qwen.decode(write_randomly(start(qwen_grammar, caption=True), random.Random(0)))
    assert "\ngenres:" not in text
    assert "\nkeyscale: " in text


def test_b21_languages_are_a_choice(qwen: Vocabulary, qwen_grammar: MetadataGrammar) -> None:
    """The reference takes the most probable language, however high the temperature."""
    known = SongMetadata(bpm=100, duration=60, keyscale="C major")
    cursor = start(qwen_grammar, known)
    cursor.forced()
    assert len(cursor.allowed().ids) == len(LANGUAGES)
