"""``.env`` in the working directory: defaults of a few options, as users of ACE-Step have them.

Plain ``KEY=VALUE`` lines and ``#`` comments. What the command line says wins, then the process's environment, then
this file. Keys of other programs are passed over.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, get_args

from dotenv.parser import parse_stream

from acestep.types import BackendName
from acestep_otel.errors import SetupError

ENVIRONMENT_FILE: Final = Path(".env")
VARIABLES: Final = {
    "config_path": "ACESTEP_CONFIG_PATH",
    "lm_model": "ACESTEP_LM_MODEL_PATH",
    "device": "ACESTEP_DEVICE",
    "lm_backend": "ACESTEP_LM_BACKEND",
}
"""Environment variable of each option that has one (docs/settings.md)."""

_BACKENDS: Final = get_args(BackendName)
_OPTIONS: Final = {variable: option for option, variable in VARIABLES.items()}
_WORDS: Final = {
    "device": (re.compile(r"auto|cuda(:\d+)?|mps|cpu"), "auto, cuda, cuda:N, mps or cpu"),
    "lm_backend": (re.compile("|".join(_BACKENDS)), f"{', '.join(_BACKENDS[:-1])} or {_BACKENDS[-1]}"),
}
"""What may be said, where that is known without loading anything."""


def read_defaults(path: Path) -> dict[str, str]:
    """Defaults by option; empty when there is no such file. A key without a value is as good as absent.

    Raises:
        SetupError: the file cannot be read, or a line of it means nothing; the message has file and line.
    """
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8-sig") as stream:
            bindings = list(parse_stream(stream))
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"cannot read {path}: {error}") from error
    defaults = {}
    for binding in bindings:
        # The parser counts the blank lines before an entry to it.
        text = binding.original.string
        line = binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")
        if binding.error:
            raise SetupError(f"{path}, line {line}: {text.strip()!r} is not KEY=VALUE")
        option = _OPTIONS.get(binding.key or "")
        if option is None or not binding.value:
            continue
        if option in _WORDS and not _WORDS[option][0].fullmatch(binding.value):
            raise SetupError(f"{path}, line {line}: {binding.key}={binding.value!r}: choose {_WORDS[option][1]}")
        defaults[option] = binding.value
    return defaults
