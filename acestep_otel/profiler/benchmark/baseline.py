"""Baselines: the times of a benchmark on a card, stored as one file per card, with the tolerance of every column."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from acestep_otel.errors import SetupError
from acestep_otel.profiler.benchmark.gate import DEFAULT_TOLERANCE
from acestep_otel.profiler.benchmark.matrix import COLUMNS
from acestep_otel.profiler.files import replacing
from acestep_otel.profiler.report.results import NotAResultFile, read_result

BASELINE_VERSION: Final = 1
_GIB: Final = 2**30
_SETTINGS: Final = (
    "device", "dtype", "weights", "dit_model", "lm_model", "lm_backend", "shift", "guidance_scale", "placement",
)  # fmt: skip


def card_of(environment: Mapping[str, Any]) -> str:
    """The name of a baseline's file without its ending: of the first GPU, else of the processor."""
    accelerators = environment["accelerators"]
    if accelerators:
        words = f"{accelerators[0]['name']} {round(accelerators[0]['memory_bytes'] / _GIB)}gib"
    else:
        words = f"{environment['cpu']} {environment['cpu_cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def read_benchmark(path: Path) -> dict[str, Any]:
    """A result file of mode ``benchmark``.

    Raises:
        SetupError: it cannot be read, or is no such file.
    """
    try:
        document = read_result(path)
    except NotAResultFile as error:
        raise SetupError(str(error)) from error
    if document["mode"] != "benchmark":
        raise SetupError(f"{path} is of mode {document['mode']}: a baseline is of --mode benchmark")
    return document


def save_baseline(paths: Sequence[Path], folder: Path, tolerances: Mapping[str, float]) -> Path:
    """Make result files the baseline of their card, replacing the previous one.

    Args:
        paths: the result files, each of a separate process.
        folder: of the baselines.
        tolerances: by column; other columns have the default.

    Raises:
        SetupError: a file is no benchmark, they are of several cards, or a column is not known.
        OSError: the baseline could not be written.
    """
    documents = [read_benchmark(path) for path in paths]
    card = one_card(documents)
    if unknown := set(tolerances) - set(COLUMNS):
        raise SetupError(f"there is no column {sorted(unknown)[0]!r}: choose {', '.join(COLUMNS)}")
    content = {
        "baseline_version": BASELINE_VERSION,
        "card": card,
        "tolerances": {column: tolerances.get(column, DEFAULT_TOLERANCE) for column in COLUMNS},
        "results": documents,
    }
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{card}.json"
    with replacing(target) as stream:
        json.dump(content, stream, ensure_ascii=False, indent=1)
        stream.write("\n")
    return target


def one_card(documents: Sequence[Mapping[str, Any]]) -> str:
    """The card of all result files.

    Raises:
        SetupError: they are of several cards.
    """
    cards = sorted({card_of(document["environment"]) for document in documents})
    if len(cards) > 1:
        raise SetupError(f"the files are of several cards ({', '.join(cards)}): give those of one")
    return cards[0]


def read_baseline(folder: Path, card: str) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The results and the tolerances of a card's baseline.

    Raises:
        SetupError: there is none for this card, or the file is invalid; the message says what to do.
    """
    path = folder / f"{card}.json"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in folder.glob("*.json"))) or "none"
        raise SetupError(
            f"{folder} has no baseline of {card} (it has: {known}): make one with acestep-otel baseline RESULT.json"
        )
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["baseline_version"] != BASELINE_VERSION:
            raise ValueError(f"version {content['baseline_version']}")
        tolerances = {str(column): float(share) for column, share in content["tolerances"].items()}
        results: list[dict[str, Any]] = content["results"]
        modes = {result["mode"] for result in results}
        if modes != {"benchmark"} or not all(0 <= share < 10 for share in tolerances.values()):
            raise ValueError("no benchmark, or a tolerance that is not a share")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SetupError(f"{path} is not a baseline of version {BASELINE_VERSION}: {error!r}") from error
    return results, tolerances


def differing_settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Settings that affect times and differ, a line each: the figures then do not compare the code alone."""
    first, second = _effective(before), _effective(after)
    lines = [
        f"{name}: {first.get(name)} in the baseline, {second.get(name)} now"
        for name in _SETTINGS
        if first.get(name) != second.get(name)
    ]
    versions = [document["environment"]["packages"].get("torch") for document in (before, after)]
    if versions[0] != versions[1]:
        lines.append(f"torch: {versions[0]} in the baseline, {versions[1]} now")
    return lines


def _effective(document: Mapping[str, Any]) -> Mapping[str, Any]:
    for row in document["results"]:
        for run in row["runs"]:
            if run["effective_settings"] is not None:
                found: Mapping[str, Any] = run["effective_settings"]
                return found
    return {}
