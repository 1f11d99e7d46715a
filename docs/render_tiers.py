"""Draws docs/images/tiers.png: the page's section on tiers, from the boundary tests in benchmarks/results.

Run `python -m docs.render_tiers`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from acestep.memory_cap import MemoryCap
from acestep.types import Placement
from acestep_otel.profiler.benchmark.matrix import Failure
from acestep_otel.profiler.report.environment import Environment
from acestep_otel.profiler.report.html import Report, render_report
from acestep_otel.profiler.tier_test.trials import MemoryUse, Observation, TierResult, Trial
from tests.browser import screenshot

ROOT = Path(__file__).resolve().parent.parent
WIDTH, HEIGHT = 1100, 1120


def rows() -> Iterator[TierResult]:
    """Every row of the boundary tests, the smallest card first."""
    found = [
        row
        for path in sorted((ROOT / "benchmarks" / "results").glob("tiers-boundary-*-h100.json"))
        for row in json.loads(path.read_text("utf-8"))["results"]
    ]
    return map(result, sorted(found, key=lambda row: row["tier_gb"]))


def result(row: dict[str, Any]) -> TierResult:
    """A row of a result file, as the page takes it."""
    trial = Trial(
        memory=row["tier_gb"],
        tier=row["tier"],
        kind=row["test_variant"],
        lm_model=row["lm_model"],
        placement=Placement(row["offload"], row["offload_dit"], row["quantization"], row["compile"]),
        batch_size=row["batch_size"],
        duration=row["duration"],
        inference_steps=row["inference_steps"],
    )
    failure, observation = row["error"], None
    if row["memory"] is not None:
        cap, memory = MemoryCap(**row["cap"]), MemoryUse.from_json(row["memory"])
        observation = Observation("cuda", cap, row["init_success"], memory=memory)
    return TierResult(trial, row["status"], failure and Failure(**failure), observation, notes=tuple(row["notes"]))


def main() -> None:
    """Draw the picture."""
    # Its section on the environment is this machine's, and is below the part that is drawn.
    page = render_report(Report("tier-test", Environment.current(), {}, tiers=tuple(rows())))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tiers.html"
        path.write_text(page, "utf-8")
        # The browser leaves the end of a window blank where its own bars would be.
        image = screenshot(path, "light", WIDTH, HEIGHT + 200).crop((0, 0, WIDTH, HEIGHT))
    # Few colours: a palette makes the file a third as large.
    image.quantize(64).save(ROOT / "docs" / "images" / "tiers.png", optimize=True)


if __name__ == "__main__":
    main()
