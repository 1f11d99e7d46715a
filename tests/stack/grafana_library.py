"""Grafana's own data library and published schema, run by Node on the committed dashboards."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).with_name("grafana")
Samples = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Shown:
    """A panel as a table: the texts of its cells, row by row."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    def column(self, name: str) -> list[str]:
        return [row[self.columns.index(name)] for row in self.rows]

    def __str__(self) -> str:
        table = [self.columns, *self.rows]
        widths = [max(len(row[place]) for row in table) for place in range(len(self.columns))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
        ]
        return "\n".join([self.title, "-" * max(map(len, lines)), *lines])


def node(script: str, *arguments: str, given: str = "") -> str:
    """What a script of the folder prints; without Node or its packages the test is skipped."""
    program = shutil.which("node")
    if program is None or not (FOLDER / "node_modules").is_dir():
        pytest.skip("Grafana's library is not installed: npm ci --prefix tests/stack/grafana")
    done = subprocess.run([program, FOLDER / script, *arguments], input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def against_schema(*boards: Path) -> list[str]:
    """What in these dashboards does not fit the types that Grafana publishes."""
    return list(json.loads(node("validate.cjs", *map(str, boards))))


def shown(panels: Sequence[tuple[dict[str, Any], Mapping[str, Samples]]]) -> dict[str, Shown]:
    """What panels show, by title.

    Args:
        panels: each with the answers to its queries, by their letters.
    """
    given = json.dumps([{"panel": panel, "answers": answers} for panel, answers in panels])
    return {one["title"]: Shown(**one) for one in json.loads(node("render.cjs", given=given))}
