import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from acestep.errors import InvalidRequest
from acestep.planner.metadata import (
    BPM_RANGE,
    DURATION_RANGE,
    KEYSCALES,
    LANGUAGES,
    TIME_SIGNATURES,
    dump_metadata,
    normalise,
    parse_metadata,
)
from acestep.types import SongMetadata

WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="<\ufffd"), max_size=300)
YAML_TRAPS = ("a:", "'b'", "-", "#", "[c]", "{d}", '"e"', "no", ":", "12", "|x", ">y", "&z", "!w", "%v", "@u", "k:v")
CAPTIONS = WORDS | st.lists(st.sampled_from(YAML_TRAPS)).map(" ".join)
METADATA = st.builds(
    SongMetadata,
    bpm=st.none() | st.integers(*BPM_RANGE),
    caption=st.none() | CAPTIONS,
    duration=st.none() | st.integers(*DURATION_RANGE),
    keyscale=st.none() | st.sampled_from(KEYSCALES),
    language=st.none() | st.sampled_from(LANGUAGES),
    timesignature=st.none() | st.sampled_from(TIME_SIGNATURES),
).map(normalise)


def test_legal_values_are_those_of_the_model() -> None:
    assert (len(set(KEYSCALES)), len(set(LANGUAGES)), TIME_SIGNATURES) == (70, 51, ("2", "3", "4", "6"))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("keyscale", "Am", "A minor"),
        ("keyscale", "C Major", "C major"),
        ("keyscale", "f# MINOR", "F# minor"),
        ("keyscale", "bb", "Bb major"),
        ("keyscale", "bm", "B minor"),
        ("keyscale", "AM", "A major"),
        ("keyscale", "B♭ minor", "B♭ minor"),
        ("keyscale", " N/A ", None),
        ("language", "EN", "en"),
        ("language", "", None),
        ("timesignature", "4/4", "4"),
        ("timesignature", "6/8", "6"),
        ("timesignature", "3 / 4", "3"),
        ("timesignature", 3, "3"),
        ("bpm", 120.0, 120),
        ("caption", "two\n lines\x00", "two lines"),
        ("caption", " \n", None),
    ],
)
def test_b18_values_are_brought_into_the_models_spelling(field: str, value: object, expected: object) -> None:
    """Values that the model never saw must not be forced into its output."""
    assert getattr(normalise(SongMetadata(**{field: value})), field) == expected


@pytest.mark.parametrize(
    ("field", "value", "hint"),
    [
        ("bpm", 29, "30 ... 300"),
        ("bpm", 999, "30 ... 300"),
        ("bpm", 120.5, "whole number"),
        ("bpm", float("nan"), "30 ... 300"),
        ("duration", 9, "10 ... 600"),
        ("duration", 601, "10 ... 600"),
        ("keyscale", "H#", "C# minor"),
        ("keyscale", "C dorian", "C# minor"),
        ("language", "klingon", "unknown"),
        ("timesignature", "5/4", "2, 3, 4, 6"),
        ("timesignature", "6/4", "2, 3, 4, 6"),
    ],
)
def test_b18_values_outside_are_refused_by_name(field: str, value: object, hint: str) -> None:
    with pytest.raises(InvalidRequest, match=hint) as caught:
        normalise(SongMetadata(**{field: value}))
    assert str(value) in str(caught.value)


@given(METADATA)
def test_normalising_twice_changes_nothing(metadata: SongMetadata) -> None:
    assert normalise(metadata) == metadata


def test_the_block_of_the_training_data() -> None:
    metadata = SongMetadata(120, "calm piano", 60, "F# minor", "no", "4")
    assert dump_metadata(metadata) == (
        "bpm: 120\ncaption: calm piano\nduration: 60\nkeyscale: F# minor\nlanguage: 'no'\ntimesignature: 4"
    )
    assert dump_metadata(SongMetadata()) == ""


def test_long_captions_fold_at_eighty_columns() -> None:
    lines = dump_metadata(SongMetadata(caption="word " * 40 + "end")).split("\n")
    assert len(lines) == 3
    assert all(line.startswith("  w") for line in lines[1:])
    assert all(len(line) <= 85 for line in lines)


@given(METADATA)
def test_yaml_reads_the_block_as_the_same_values(metadata: SongMetadata) -> None:
    known = {name: getattr(metadata, name) for name in SongMetadata.__slots__}
    expected = {name: value for name, value in known.items() if value is not None}
    if "timesignature" in expected:
        expected["timesignature"] = int(expected["timesignature"])
    assert (yaml.safe_load(dump_metadata(metadata)) or {}) == expected


@given(METADATA)
def test_b14_what_is_written_is_read_back(metadata: SongMetadata) -> None:
    """Quotes around a caption must not survive reading, or they pile up."""
    block = dump_metadata(metadata)
    assert parse_metadata(block) == metadata
    assert parse_metadata(f"<think>\n{block}\n</think>\n\n<|audio_code_5|>") == metadata


@given(METADATA)
def test_a_block_without_its_end_is_read(metadata: SongMetadata) -> None:
    assert parse_metadata(f"<think>\n{dump_metadata(metadata)}\n<|im_end|>") == metadata


@given(st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    metadata = parse_metadata(text)
    assert normalise(metadata) == metadata


def test_b15_unknown_fields_do_not_run_into_others() -> None:
    found = parse_metadata("<think>\nbpm: 90\nmood: dark\n  and slow\nduration: 99\n</think>")
    assert found == SongMetadata(bpm=90, duration=99)


def test_illegal_values_are_left_out_and_the_rest_is_kept() -> None:
    found = parse_metadata("bpm: fast\nduration: 7000\nkeyscale: H\nlanguage: en\ntimesignature: 6/8")
    assert found == SongMetadata(language="en", timesignature="6")


def test_folded_and_quoted_captions() -> None:
    assert parse_metadata("caption: one\n  two\n  three\nbpm: 90").caption == "one two three"
    assert parse_metadata("caption: 'it''s: a\n  test'").caption == "it's: a test"
    assert parse_metadata("caption: 'unfinished").caption == "'unfinished"


def test_b13_special_tokens_do_not_enter_a_caption() -> None:
    assert parse_metadata("<think>\ncaption: A warm<|im_end|>\n<|audio_code_64001|>").caption == "A warm"


def test_codes_end_the_block() -> None:
    assert parse_metadata("bpm: 90\n<|audio_code_1|>\nduration: 60").duration is None
