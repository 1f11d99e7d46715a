"""Song metadata: legal values, and its YAML form inside the language model's ``<think>`` block.

The block is what PyYAML writes for the fields that are known, in alphabetical order: the training data was made
that way, so folding at 80 columns and quoting follow PyYAML by using it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import fields
from typing import Any, Final

import yaml

from acestep.errors import InvalidRequest
from acestep.types import SongMetadata

_NOTES: Final = ("A", "B", "C", "D", "E", "F", "G")
_ACCIDENTALS: Final = ("", "#", "b", "♯", "♭")
KEYSCALES: Final = tuple(
    f"{note}{accidental} {mode}" for note in _NOTES for accidental in _ACCIDENTALS for mode in ("major", "minor")
)
"""The 70 keys of the model; ``#`` and ``♯``, ``b`` and ``♭`` are different tokens."""
# fmt: off
LANGUAGES: Final = (
    "ar", "az", "bg", "bn", "ca", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fr", "he", "hi", "hr", "ht",
    "hu", "id", "is", "it", "ja", "ko", "la", "lt", "ms", "ne", "nl", "no", "pa", "pl", "pt", "ro", "ru", "sa",
    "sk", "sr", "sv", "sw", "ta", "te", "th", "tl", "tr", "uk", "ur", "vi", "yue", "zh", "unknown",
)
# fmt: on
"""Languages of the vocals; the model writes ``unknown`` if it cannot decide."""
UNKNOWN_LANGUAGE: Final = "unknown"
TIME_SIGNATURES: Final = ("2", "3", "4", "6")
"""Beats per bar; 6 means 6/8, the others count quarters."""
BPM_RANGE: Final = (30, 300)
"""Beats per minute, both ends included."""
DURATION_RANGE: Final = (10, 600)
"""Seconds, both ends included."""

_FIELDS: Final = tuple(field.name for field in fields(SongMetadata))
_KEYSCALE: Final = re.compile(r"([A-Ga-g])\s*([#b♯♭]?)\s*(.*)")
_MODES: Final = {"": "major", "maj": "major", "major": "major", "m": "minor", "min": "minor", "minor": "minor"}
_TIME_SIGNATURE: Final = re.compile(r"([234])(?:/4)?|(6)(?:/8)?")
_FIELD_LINE: Final = re.compile(r"([A-Za-z_]+):(.*)")
MARKUP: Final = re.compile(r"<\|[^|<>]*\|>|</?think>")
"""Special tokens and audio codes, spelled out."""
_FIRST_CODE: Final = re.compile(r"<\|audio_code_\d+\|>")


def normalise(metadata: SongMetadata) -> SongMetadata:
    """Bring metadata into the spelling of the model.

    ``Am`` becomes ``A minor``, ``C Major`` becomes ``C major``, ``6/8`` becomes ``6``; unicode accidentals stay.
    Empty text and ``N/A`` become ``None``.

    Raises:
        InvalidRequest: a value has no legal spelling; the message names it and the legal ones.
    """
    return SongMetadata(
        bpm=_in_range("bpm", metadata.bpm, BPM_RANGE),
        caption=_one_line(metadata.caption or "") or None,
        duration=_in_range("duration", metadata.duration, DURATION_RANGE),
        keyscale=_if_given(metadata.keyscale, _keyscale),
        language=_if_given(metadata.language, _language),
        timesignature=_if_given(metadata.timesignature, _time_signature),
    )


def dump_metadata(metadata: SongMetadata) -> str:
    """YAML of the fields that are not ``None``, without a final newline; empty for none.

    Args:
        metadata: normalised metadata.
    """
    known: dict[str, int | str] = {name: value for name in _FIELDS if (value := getattr(metadata, name)) is not None}
    if metadata.timesignature is not None:
        known["timesignature"] = int(metadata.timesignature)
    return yaml.dump(known, Dumper=yaml.SafeDumper, allow_unicode=True, sort_keys=True).strip() if known else ""


def parse_metadata(text: str) -> SongMetadata:
    """Read what the model wrote, as far as it makes sense.

    Takes the block between ``<think>`` and ``</think>``; either may be missing. Values are read as YAML scalars
    (folded lines, quotes), fields may come in any order, and a value without a legal spelling is left out. Special
    tokens inside the block are dropped.

    Args:
        text: output of the model.
    """
    _, opened, rest = text.partition("<think>")
    block = (rest if opened else text).partition("</think>")[0]
    block = MARKUP.sub("", _FIRST_CODE.split(block, maxsplit=1)[0])
    found = dict(_scalars(block.split("\n")))
    legal: dict[str, Any] = {}
    for name in _FIELDS:
        if name in found:
            with suppress(InvalidRequest, ValueError):
                value: dict[str, Any] = {name: int(found[name]) if name in ("bpm", "duration") else found[name]}
                legal[name] = getattr(normalise(SongMetadata(**value)), name)
    return SongMetadata(**legal)


def _scalars(lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Name and value of each field; lines that are indented or empty continue the field above them."""
    name, value = "", ""
    for line in lines:
        if (field := _FIELD_LINE.match(line)) is not None:
            if name:
                yield name, _scalar(value)
            name, value = field[1].lower(), field[2]
        elif not line or line[0] in " \t":
            value += "\n" + line
    if name:
        yield name, _scalar(value)


def _scalar(value: str) -> str:
    """The text of a YAML scalar; what looks quoted but is not YAML stays as it is."""
    value = value.strip()
    if value[:1] in ("'", '"'):
        with suppress(yaml.YAMLError):
            loaded = yaml.load(value, Loader=yaml.BaseLoader)
            if isinstance(loaded, str):
                return loaded
    return " ".join(line.strip() for line in value.split("\n"))


def printable(text: str) -> str:
    """The text without control characters and lone surrogates; white space stays."""
    return "".join(
        character
        for character in text
        if character.isspace() or (unicodedata.category(character) not in ("Cc", "Cs") and character != "\ufffd")
    )


def _one_line(text: str) -> str:
    """The printable text without line breaks."""
    return " ".join(printable(text).split())


def _if_given(value: str | None, spell: Callable[[str], str]) -> str | None:
    # str(): JSON files write a time signature as a number as often as not.
    text = "" if value is None else str(value).strip()
    return None if text.upper() in ("", "N/A") else spell(text)


def _in_range(name: str, value: int | None, legal: tuple[int, int]) -> int | None:
    if value is None:
        return None
    if legal[0] <= value <= legal[1] and value == int(value):
        return int(value)
    raise InvalidRequest(f"{name} {value} is not a whole number in {legal[0]} ... {legal[1]}")


def _keyscale(value: str) -> str:
    if (match := _KEYSCALE.fullmatch(value)) is not None:
        note, accidental, mode = match.groups()
        # Case matters in one place only: "AM" is A major, "Am" is A minor.
        spelled = "major" if mode == "M" else _MODES.get(mode.lower())
        if spelled is not None:
            return f"{note.upper()}{accidental} {spelled}"
    raise InvalidRequest(
        f"unknown keyscale {value!r}: write a note A ... G, then #, b, ♯, ♭ or nothing, then major or minor, "
        "for example 'C# minor'"
    )


def _language(value: str) -> str:
    if value.lower() in LANGUAGES:
        return value.lower()
    raise InvalidRequest(f"unknown language {value!r}: choose one of {', '.join(LANGUAGES)}")


def _time_signature(value: str) -> str:
    if (match := _TIME_SIGNATURE.fullmatch(value.replace(" ", ""))) is not None:
        return match[1] or match[2]
    raise InvalidRequest(f"unknown time signature {value!r}: choose one of {', '.join(TIME_SIGNATURES)} (6 is 6/8)")
