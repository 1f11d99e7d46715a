"""Does the peak that a tier test reports agree with the driver's own figure?

Reads result files of ``--mode tier-test`` and compares, row by row, the allocator's peak reserve plus the context with
the driver's peak for the process. They should be within 2 % or 50 MiB of each other.

    python -m benchmarks.tiers benchmarks/results/tiers.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acestep_otel.profiler.report.results import NotAResultFile, read_result

MIB = 2**20
SHARE, BYTES = 0.02, 50 * MIB


@dataclass(frozen=True)
class Comparison:
    """One row's two figures, in bytes."""

    row: str
    source: str
    computed: int
    driver: int

    @property
    def difference(self) -> int:
        """The computed figure less the driver's."""
        return self.computed - self.driver

    @property
    def agrees(self) -> bool:
        """Whether both are close enough."""
        return abs(self.difference) <= max(BYTES, SHARE * self.driver)


def result_file(word: str) -> dict[str, Any]:
    """The content of a result file of a tier test."""
    try:
        document = read_result(Path(word))
    except NotAResultFile as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if (mode := document.get("mode")) != "tier-test":
        raise argparse.ArgumentTypeError(f"{word} is of mode {mode}, not tier-test")
    return document


def comparisons(document: dict[str, Any]) -> Iterator[Comparison]:
    """Every row of a result file whose process the driver showed."""
    for row in document["results"]:
        memory = row["memory"]
        if memory is not None and memory["driver"] is not None:
            name = f"{row['tier_gb']}GB {row['test_variant']}"
            computed = memory["reserved"] + memory["context"]
            yield Comparison(name, memory["source"], computed, memory["driver"])


def main() -> int:
    """Print the table; 1 when a row disagrees or there is none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=result_file, help="result files of --mode tier-test")
    found = [compared for document in parser.parse_args().results for compared in comparisons(document)]
    print(f"{'row':<22}{'computed MiB':>14}{'driver MiB':>12}{'difference':>12}  source")
    for compared in found:
        figures = (compared.computed, compared.driver, compared.difference)
        computed, driver, difference = (f"{figure / MIB:,.0f}" for figure in figures)
        verdict = "" if compared.agrees else "  DISAGREES"
        print(f"{compared.row:<22}{computed:>14}{driver:>12}{difference:>12}  {compared.source}{verdict}")
    if not found:
        print("no row has a figure from the driver")
    return 0 if found and all(compared.agrees for compared in found) else 1


if __name__ == "__main__":
    sys.exit(main())
