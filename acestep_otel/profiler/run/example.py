"""Example songs: JSON files of ``examples/text2music``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from acestep.documents import DocumentError, read_document, shown
from acestep_otel.errors import SetupError
from acestep_otel.profiler.terminal import warn

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
_ALIASES: Final = {
    "prompt": "caption",
    "audio_duration": "duration",
    "key_scale": "keyscale",
    "time_signature": "timesignature",
    "vocal_language": "language",
    "infer_steps": "inference_steps",
}
"""Keys of the released API, by their names here."""
_HOW_TO_RUN: Final = frozenset(
    {"think", "thinking", "instrumental", "guidance_scale", "use_random_seed", "audio_format", "task_type", "model"}
    | {"use_cot_metas", "use_cot_caption", "use_cot_language", "use_format", "sample_mode"}
    | {"lm_temperature", "lm_cfg_scale", "lm_top_k", "lm_top_p", "lm_model_path", "constrained_decoding"}
)
"""Known keys that options determine, not an example."""
_WISHES: Final = ("description", "sample_query", "query")
"""Keys that files of the simple mode have in place of a caption."""
_JSON_NAMES: Final[dict[type, str]] = {
    str: "string",
    int: "whole number",
    float: "number",
    list: "list",
    bool: "true or false",
}
_LARGEST: Final = 2**20
"""Bytes of an example."""


@dataclass(frozen=True, slots=True)
class Example:
    """One example; a key that the file lacks, or that is null, has its default here.

    Attributes:
        caption: description of the music.
        lyrics: the text, with section tags.
        bpm: beats per minute.
        duration: seconds.
        keyscale: for example ``E♭ minor``.
        language: code of the vocals' language.
        timesignature: beats per bar.
        batch_size: songs to generate.
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

    Keys of the released API are accepted beside the names here. Keys for the execution of a request, rather than its
    content, are ignored; a warning names any other key.

    Raises:
        SetupError: there is no such file, or it is not an example; the message names the place.
    """
    path = find_example(name)
    if path is None:
        raise SetupError(f"no example {shown(name)!r}; there are: {', '.join(available_examples()) or 'none'}")
    try:
        content = read_document(path, largest=_LARGEST)
    except DocumentError as error:
        raise SetupError(str(error)) from error
    if not isinstance(content, dict):
        raise SetupError(f"{path} contains a JSON {_JSON_NAMES.get(type(content), 'null')}: an example is an object")
    return _example(content, path)


def available_examples() -> list[str]:
    """Names that ``load_example`` accepts, sorted."""
    return sorted({path.name for folder in FOLDERS for path in folder.glob("*.json")})


def find_example(name: str) -> Path | None:
    """The file of an example's name or path; ``None`` if there is none."""
    # Not Path.is_file, which raises for a name that is too long.
    candidates = (*(folder / name for folder in FOLDERS), Path(name))
    return next((path for path in candidates if os.path.isfile(path)), None)  # noqa: PTH113


def _example(content: dict[str, Any], path: Path) -> Example:
    found: dict[str, Any] = {}
    for key, value in content.items():
        field = _ALIASES.get(key, key)
        if value is None or field not in _KEY_TYPES:
            continue
        if field in found:
            raise SetupError(f"{path}: {key!r} and another key both set the {field}: leave one out")
        # JSON's true is an int to Python, but no tempo.
        if isinstance(value, bool) or not isinstance(value, _KEY_TYPES[field]):
            expected = " or ".join(_JSON_NAMES[kind] for kind in _KEY_TYPES[field])
            raise SetupError(f"{path}: {key!r} is {_shortened(value)}, expected a {expected}")
        found[field] = str(value) if field == "timesignature" else value
    unknown = sorted(key for key in content if _ALIASES.get(key, key) not in _KEY_TYPES and key not in _HOW_TO_RUN)
    if not found:
        raise SetupError(f"{path} is not an example: it has none of the keys {', '.join(_KEY_TYPES)}")
    wish = next((key for key in _WISHES if isinstance(content.get(key), str)), None)
    if wish is not None and not {"caption", "lyrics"} & found.keys():
        raise SetupError(f"{path} has a {wish} in place of a caption: use --mode create_sample --sample-query")
    if unknown:
        warn(f"{shown(path)}: unknown keys are ignored: {', '.join(map(_shortened, unknown[:10]))}")
    return Example(**found)


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
