"""A mode is known by one name everywhere: the command line, what runs it, the result file and both guides."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import get_args

import pytest

from acestep_otel.profiler.modes import MODES
from acestep_otel.profiler.options import Mode

NAMES = set(get_args(Mode))
GUIDES = Path(__file__).resolve().parents[2] / "docs"


def test_every_mode_of_the_command_line_can_be_run() -> None:
    assert set(MODES) == NAMES


def test_the_schema_of_the_result_file_has_every_mode() -> None:
    schema = json.loads((files("acestep_otel.profiler.report") / "result.schema.json").read_text("utf-8"))
    assert set(schema["properties"]["mode"]["enum"]) == NAMES


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_guide_has_a_row_for_every_mode(language: str) -> None:
    text = (GUIDES / language / "BENCHMARK.md").read_text("utf-8")
    (table,) = re.findall(r"^\| `--mode` \| [^`]+ \|\n\|-.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert set(re.findall(r"^\| `([\w-]+)`", table, re.MULTILINE)) == NAMES
