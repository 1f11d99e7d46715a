"""A statistical gate over repeated runs: which figures of a result file are slower than a baseline's.

A figure is slower when three things hold: the exact one-sided rank-sum test (Mann-Whitney U) of the candidate's runs
against the baseline's has p < ``ALPHA``; the candidate's median is worse by more than the column's tolerance and by
more than the noise floor; and, where several candidates of separate processes are given, both hold for each of them.
Below ``FEWEST`` runs on either side a figure is not judged: four runs on both sides allow no p that small.

The test assumes no distribution, and outliers count by their rank alone. It does not account for differences between
processes: for these, a baseline has several. The tolerance of a figure is then at least the difference between the
medians of the baseline's own processes. ``benchmarks/gate.py`` measures how often equal runs fail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import median
from typing import Any, Final, Literal

from acestep_otel.profiler.benchmark.matrix import COLUMNS, Cell

ALPHA: Final = 0.01
FEWEST: Final = 5
"""Runs of each side: with 5 and 5 the smallest p is 1/252."""
DEFAULT_TOLERANCE: Final = 0.03
"""Share by which a median may be worse."""

Verdict = Literal["ok", "slower", "faster", "not judged"]
Samples = Mapping[Cell, Mapping[str, Sequence[float]]]
"""Seconds of every run by cell and column; a cell that failed has none."""


def samples_of(document: Mapping[str, Any]) -> dict[Cell, dict[str, list[float]]]:
    """The runs of a result file of mode ``benchmark``.

    Raises:
        KeyError: it is of another form.
    """
    found: dict[Cell, dict[str, list[float]]] = {}
    for row in document["results"]:
        columns: dict[str, list[float]] = {column: [] for column in COLUMNS}
        for run in row["runs"]:
            if run["status"] != "ok" or run["measurement"] is None:
                continue
            measurement, stages = run["measurement"], run["measurement"]["stages"]
            columns["wall_time"].append(float(measurement["wall"]))
            columns["lm_time"].append(float(stages["llm_planning"]["total"]))
            columns["dit_time"].append(float(stages["dit_diffusion"]["total"]))
            columns["vae_time"].append(float(stages["vae_decode"]["total"]))
        found[Cell(**row["config"])] = {} if row["status"] != "ok" else columns
    return found


def rank_sum_p(before: Sequence[float], after: Sequence[float]) -> float:
    """The exact one-sided p of the rank-sum test: the probability that ``after`` is this much larger if both are alike.

    Ties count half; with ties the p is that of the next smaller rank sum, so it is never too small.

    Args:
        before: one run or more.
        after: the same.
    """
    larger = sum((late > early) + 0.5 * (late == early) for late in after for early in before)
    counts = _arrangements(len(before), len(after))
    return sum(counts[int(larger) :]) / sum(counts)


@lru_cache(maxsize=64)
def _arrangements(first: int, second: int) -> tuple[int, ...]:
    """The number of orders of both samples for each number of pairs in which the value of the second is larger.

    Source: Mann and Whitney 1947: the largest value is of the second sample, and exceeds all of the first, or it is of
    the first.
    """
    if first == 0 or second == 0:
        return (1,)
    counts = [0] * (first * second + 1)
    for pairs, ways in enumerate(_arrangements(first, second - 1)):
        counts[pairs + first] += ways
    for pairs, ways in enumerate(_arrangements(first - 1, second)):
        counts[pairs] += ways
    return tuple(counts)


def spread_between(processes: Sequence[Sequence[float]]) -> float:
    """Spread of the medians of equal processes: the largest over the smallest, less 1; 0 for a single process."""
    medians = [median(runs) for runs in processes if runs]
    return max(medians) / min(medians) - 1 if medians and min(medians) > 0 else 0.0


def is_worse(before: Sequence[float], after: Sequence[float], tolerance: float, noise_floor: float = 0.0) -> bool:
    """Whether the second runs are slower than the first: by the test, by the tolerance and by the noise floor."""
    lost = median(after) - median(before)
    return rank_sum_p(before, after) < ALPHA and lost > tolerance * median(before) and lost > noise_floor


@dataclass(frozen=True, slots=True)
class Judgement:
    """One figure.

    Attributes:
        cell: its configuration.
        column: name of the time.
        before: median of the baseline, in seconds; ``None`` without runs.
        after: median of the candidate's runs, of several candidates the smallest.
        p: of the test, of several candidates the largest; ``None`` where it was not judged.
        tolerance: share by which the median may be worse.
        verdict: the result.
        why: the reason in words, if it was not judged or failed.
    """

    cell: Cell
    column: str
    before: float | None
    after: float | None
    p: float | None
    tolerance: float
    verdict: Verdict
    why: str = ""

    @property
    def change(self) -> float | None:
        """Share by which the median is worse."""
        return self.after / self.before - 1 if self.before and self.after is not None else None


def judge(
    baseline: Sequence[Samples],
    candidates: Sequence[Samples],
    tolerances: Mapping[str, float],
    noise_floor: float = 0.0,
) -> list[Judgement]:
    """Judge every figure of the cells that all files have.

    Args:
        baseline: samples of the baseline, one or more, each of a separate process.
        candidates: samples of the candidates, likewise.
        tolerances: by column; ``DEFAULT_TOLERANCE`` for one that is not named.
        noise_floor: seconds by which a median may increase, whatever the ratio.
    """
    cells = [cell for cell in baseline[0] if all(cell in each for each in (*baseline, *candidates))]
    return [
        _judged(
            cell,
            column,
            [process[cell].get(column, ()) for process in baseline],
            [candidate[cell].get(column, ()) for candidate in candidates],
            tolerances.get(column, DEFAULT_TOLERANCE),
            noise_floor,
        )
        for cell in cells
        for column in COLUMNS
    ]


def _judged(
    cell: Cell,
    column: str,
    processes: Sequence[Sequence[float]],
    after: Sequence[Sequence[float]],
    tolerance: float,
    noise_floor: float,
) -> Judgement:
    before = [seconds for runs in processes for seconds in runs]
    tolerance = max(tolerance, spread_between(processes))

    def verdict(word: Verdict, why: str = "", p: float | None = None) -> Judgement:
        medians = [median(runs) for runs in after if runs]
        return Judgement(
            cell, column, median(before) if before else None, min(medians, default=None), p, tolerance, word, why
        )

    if before and not all(after):
        return verdict("slower", "failed")
    if not any(before):
        # A stage that did not run in the baseline.
        return verdict("not judged", "took no time in the baseline")
    fewest = min(len(before), *map(len, after))
    if fewest < FEWEST:
        return verdict("not judged", f"{fewest} runs; {FEWEST} are needed (--repeat)")
    usual = median(before)
    slower = [is_worse(before, runs, tolerance, noise_floor) for runs in after]
    p = max(rank_sum_p(before, runs) for runs in after)
    if all(slower):
        change = 100 * (min(median(runs) for runs in after) / usual - 1)
        return verdict("slower", f"{change:+.1f} % with p = {p:.4f}, {100 * tolerance:g} % are tolerated", p)
    if any(slower):
        return verdict("ok", "slower in one process and not in another", p)
    is_faster = all(is_worse(runs, before, tolerance, noise_floor) for runs in after)
    return verdict("faster" if is_faster else "ok", "", p)
