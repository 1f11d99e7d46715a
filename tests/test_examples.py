"""The example songs keep to their schema and cover several scripts."""

import json
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "text2music"
PATHS = sorted(FOLDER.glob("example_*.json"))

KEY_TYPES = {
    "think": bool,
    "caption": str,
    "lyrics": str,
    "bpm": int,
    "duration": int,
    "keyscale": str,
    "language": str,
    "timesignature": str,
}
KEYSCALE = re.compile(r"[A-G][#b♯♭]? (major|minor)")
TAG = re.compile(r"\[[^\[\]\n]+\]")

# The script in which most letters of the sung lines are, by language.
SCRIPTS = {
    "ar": "ARABIC",
    "de": "LATIN",
    "en": "LATIN",
    "es": "LATIN",
    "fr": "LATIN",
    "he": "HEBREW",
    "hi": "DEVANAGARI",
    "ja": "KANA",
    "ko": "HANGUL",
    "pt": "LATIN",
    "ru": "CYRILLIC",
    "zh": "CJK",
}


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def sung_lines(lyrics: str) -> list[str]:
    return [line for line in lyrics.split("\n") if line and not TAG.fullmatch(line)]


def script(lyrics: str) -> str | None:
    letters = [char for line in sung_lines(lyrics) for char in line if char.isalpha()]
    names = (unicodedata.name(char).split()[0] for char in letters)
    counts = Counter("KANA" if name in {"HIRAGANA", "KATAKANA"} else name for name in names)
    return counts.most_common(1)[0][0] if counts else None


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_keys_and_types(path: Path) -> None:
    song = load(path)
    assert list(song) == list(KEY_TYPES)
    assert {key: type(value) for key, value in song.items()} == KEY_TYPES


def test_value_ranges(path: Path) -> None:
    song = load(path)
    assert song["think"] is True
    assert 154 <= len(song["caption"]) <= 500
    assert 150 <= len(song["lyrics"]) <= 1500
    assert 40 <= song["bpm"] <= 200
    assert 120 <= song["duration"] <= 240
    assert KEYSCALE.fullmatch(song["keyscale"])
    assert song["language"] in {*SCRIPTS, "unknown"}
    assert song["timesignature"] in {"2", "3", "4", "6"}


def test_section_tags_have_their_own_lines(path: Path) -> None:
    lyrics = load(path)["lyrics"]
    lines = lyrics.split("\n")
    assert sum(bool(TAG.fullmatch(line)) for line in lines) >= 4
    assert not [line for line in sung_lines(lyrics) if "[" in line or "]" in line]
    assert "\r" not in lyrics
    assert [line.strip() for line in lines] == lines


def test_language_is_the_one_sung(path: Path) -> None:
    song = load(path)
    assert script(song["lyrics"]) == SCRIPTS.get(song["language"])


def test_file_layout(path: Path) -> None:
    expected = json.dumps(load(path), ensure_ascii=False, indent=2) + "\n"
    assert path.read_bytes() == expected.encode()


def test_names_count_up_from_one() -> None:
    assert len(PATHS) >= 12
    assert [path.name for path in PATHS] == [f"example_{n:02d}.json" for n in range(1, len(PATHS) + 1)]


def test_captions_are_distinct() -> None:
    captions = [load(path)["caption"] for path in PATHS]
    assert len(set(captions)) == len(captions)


def test_scripts_and_time_signatures_vary() -> None:
    songs = [load(path) for path in PATHS]
    assert len({script(song["lyrics"]) for song in songs} - {None}) >= 5
    assert {song["timesignature"] for song in songs} == {"2", "3", "4", "6"}


def test_exactly_one_instrumental() -> None:
    instrumental = [song for song in map(load, PATHS) if song["lyrics"].startswith("[Instrumental]")]
    assert [song["language"] for song in instrumental] == ["unknown"]
    assert [song for song in map(load, PATHS) if not sung_lines(song["lyrics"])] == instrumental


def test_default_example() -> None:
    song = load(FOLDER / "example_05.json")
    assert (song["bpm"], song["duration"], song["keyscale"]) == (100, 200, "E♭ minor")
    assert (song["language"], song["timesignature"]) == ("ja", "4")
    assert "J-rock" in song["caption"]
