import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.planner.lyrics import parse_lyrics

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
