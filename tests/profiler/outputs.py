"""Reads what a command line left in the working folder."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from acestep_otel.profiler.report.spans import FinishedSpan
from tests.profiler.report.schema import violations

OUTPUTS = ("--trace-output", "trace.jsonl", "--benchmark-output", "result.json")
SCHEMA = json.loads((files("acestep_otel.profiler.report") / "result.schema.json").read_text("utf-8"))


def traced() -> list[FinishedSpan]:
    with Path("trace.jsonl").open(encoding="utf-8") as lines:
        return list(FinishedSpan.from_otlp_json(lines))


def result() -> dict[str, Any]:
    """The only entry of the result file, which keeps to its schema."""
    document = json.loads(Path("result.json").read_text("utf-8"))
    assert violations(document, SCHEMA) == []
    (entry,) = document["results"]
    return entry
