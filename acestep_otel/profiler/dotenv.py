"""``.env`` in the working directory: defaults of a few options, as in ACE-Step.

Plain ``KEY=VALUE`` lines and ``#`` comments. The command line takes precedence, then the process's environment, then
this file. Keys of other programs are ignored.
"""

from __future__ import annotations

import codecs
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dotenv.parser import parse_stream

from acestep.documents import DocumentError, read_regular_file

ENVIRONMENT_FILE: Final = Path(".env")
VARIABLES: Final = {
    "config_path": "ACESTEP_CONFIG_PATH",
    "lm_model": "ACESTEP_LM_MODEL_PATH",
    "device": "ACESTEP_DEVICE",
    "lm_backend": "ACESTEP_LM_BACKEND",
    "checkpoint_dir": "ACESTEP_CHECKPOINTS_DIR",
}
"""Environment variable of each option that has one (docs/settings.md)."""

_OPTIONS: Final = {variable: option for option, variable in VARIABLES.items()}
_LARGEST: Final = 2**20


@dataclass(frozen=True, slots=True)
class FileDefaults:
    """The content of the file.

    Attributes:
        values: by option.
        places: location of each value, for messages.
        problem: why the file, or a line of it, is invalid; ``None`` if it is valid. Only a run that uses it reports it;
            ``--help`` and subcommands do not read it.
    """

    values: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    problem: str | None = None


def read_defaults(path: Path) -> FileDefaults:
    """Defaults by option; none when there is no such file. A key without a value counts as absent."""
    if not path.is_file():
        return FileDefaults()
    try:
        text = _decoded(read_regular_file(path, largest=_LARGEST))
    except UnicodeDecodeError as error:
        return FileDefaults(problem=f"{path} is neither UTF-8 nor UTF-16 text (byte {error.start})")
    except DocumentError as error:
        return FileDefaults(problem=str(error))
    values, places, problem = {}, {}, None
    for binding in parse_stream(io.StringIO(text)):
        # For the parser, the blank lines before an entry belong to it.
        entry = binding.original.string
        line = binding.original.line + entry[: len(entry) - len(entry.lstrip())].count("\n")
        if binding.error:
            problem = problem or f"{path}, line {line}: the line is not of the form KEY=VALUE"
        option = _OPTIONS.get(binding.key or "")
        if option is not None and binding.value and binding.value.strip():
            # As a shell expands a variable that is set there.
            values[option] = os.path.expanduser(binding.value) if option == "checkpoint_dir" else binding.value  # noqa: PTH111
            places[option] = f"{path}, line {line}: {binding.key}"
    return FileDefaults(values, places, problem)


def _decoded(content: bytes) -> str:
    # Some editors on Windows write UTF-16, always with a byte-order mark.
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    return content.decode("utf-8-sig")
