"""Example songs: JSON files of ``examples/text2music``."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from acestep_otel.errors import SetupError

_PACKAGE: Final = Path(__file__).resolve().parents[2]
FOLDERS: Final = (_PACKAGE / "examples" / "text2music", _PACKAGE.parent / "examples" / "text2music")
"""Folders of the examples: in an installed package, and in a checkout."""

_NUMBERS: Final = (int, float)
_KEY_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "caption": (str,),
    "lyrics": (str,),
    "bpm": (int,),
    "duration": _NUMBERS,
    "keyscale": (str,),
    "language": (str,),
    "timesignature": (str, int),
    "batch_size": (int,),
    "inference_steps": (int,),
    "seed": (int,),
}


@dataclass(frozen=True, slots=True)
class Example:
    """One example; a key that the file lacks, or that is null, has its default here.

    Attributes:
        caption: what the music is like.
        lyrics: the words, with section tags.
        bpm: beats per minute.
        duration: seconds.
        keyscale: for example ``E♭ minor``.
        language: code of the vocals' language.
        timesignature: beats per bar.
        batch_size: songs to make.
        inference_steps: diffusion steps.
        seed: seed of the first song.
    """

    caption: str = ""
    lyrics: str = ""
    bpm: int | None = None
    duration: float | None = None
    keyscale: str | None = None
    language: str | None = None
    timesignature: str | None = None
    batch_size: int = 1
    inference_steps: int = 8
    seed: int = 42


def load_example(name: str) -> Example:
    """Read an example by its file name in the examples folder, or by its path.

    Keys that the profiler does not use, such as ``think``, are passed over.

    Raises:
        SetupError: there is no such file, or it is not an example; the message says where.
    """
    path = _find(name)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise SetupError(f"{path}, line {error.lineno}, column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise SetupError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror or error}") from error
    if not isinstance(content, dict):
        raise SetupError(f"{path} holds a JSON {type(content).__name__}: an example is an object")
    return _example(content, path)


def available_examples() -> list[str]:
    """Names that ``load_example`` knows, sorted."""
    return sorted({path.name for folder in FOLDERS for path in folder.glob("*.json")})


def _find(name: str) -> Path:
    candidates = [*(folder / name for folder in FOLDERS), Path(name)]
    for path in candidates:
        if path.is_file():
            return path
    raise SetupError(f"no example {name!r}; there are: {', '.join(available_examples()) or 'none'}")


def _example(content: dict[str, Any], path: Path) -> Example:
    found: dict[str, Any] = {}
    for field in fields(Example):
        value = content.get(field.name)
        if value is None:
            continue
        # JSON's true is an int to Python, but no tempo.
        if isinstance(value, bool) or not isinstance(value, _KEY_TYPES[field.name]):
            expected = " or ".join(kind.__name__ for kind in _KEY_TYPES[field.name])
            raise SetupError(f"{path}: {field.name!r} is {value!r}, expected {expected}")
        found[field.name] = str(value) if field.name == "timesignature" else value
    return Example(**found)
