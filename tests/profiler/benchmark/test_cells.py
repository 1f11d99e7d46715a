"""Runs of a cell taken together."""

from __future__ import annotations

import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.errors import OutOfMemory
from acestep_otel.profiler.benchmark.matrix import COLUMNS, Cell, CellResult, Failure, Figures, Summary
from acestep_otel.profiler.report.breakdown import Breakdown
from tests.profiler.report.recorded import guide_spans, run_of

seconds = st.floats(0, 1e4)
figures = st.builds(Figures, seconds, seconds, seconds, seconds)


def test_figures_are_rows_of_the_breakdown() -> None:
    breakdown = Breakdown.of(run_of(guide_spans()))
    assert list(Figures.of(breakdown)) == [
        breakdown.wall, breakdown.planner, breakdown.diffusion, breakdown.vae_decode,
    ]  # fmt: skip


def test_the_median_is_the_middle_run_of_each_column() -> None:
    runs = [Figures(3, 0, 9, 1), Figures(1, 2, 7, 1), Figures(2, 1, 8, 1)]
    summary = Summary.of(runs)
    assert summary.median == Figures(2, 1, 8, 1)
    assert summary.minimum == Figures(1, 0, 7, 1)
    assert summary.spread == Figures(2, 2, 2, 0)


def test_an_even_number_of_runs_meets_half_way() -> None:
    assert Summary.of([Figures(1, 0, 0, 0), Figures(2, 0, 0, 0)]).median.wall_time == 1.5


@given(st.lists(figures, min_size=1, max_size=6))
def test_the_median_is_within_the_spread(runs: list[Figures]) -> None:
    summary = Summary.of(runs)
    for median, minimum, spread, column in zip(summary.median, summary.minimum, summary.spread, COLUMNS, strict=True):
        values = [getattr(run, column) for run in runs]
        assert minimum == min(values)
        assert minimum + spread == pytest.approx(max(values))
        assert minimum <= median <= max(values)


def test_nothing_run_has_no_summary() -> None:
    with pytest.raises(ValueError, match="no run"):
        Summary.of([])


def test_a_failed_cell_has_a_status_and_no_figures() -> None:
    error = OutOfMemory("out of memory in stage 'dit'", stage="dit")
    result = CellResult(Cell(30, 1, False, 8), (Figures(1, 1, 1, 1),), Failure.of(error), ())
    assert result.status == "OutOfMemory"
    assert result.summary is None
    entry = result.to_json()
    assert (entry["status"], entry["wall_time"], entry["minimum"]) == ("error", None, None)
    assert entry["error"] == {"type": "OutOfMemory", "message": "out of memory in stage 'dit'", "stage": "dit"}


def test_a_failure_does_not_keep_the_memory_of_the_failed_run() -> None:
    class Tensor:
        """Stands for one that lives in a frame of the traceback."""

    def run() -> weakref.ref[Tensor]:
        tensor = Tensor()
        raise RuntimeError("no room", weakref.ref(tensor))

    try:
        run()
    except RuntimeError as error:
        failure, held = Failure.of(error), error.args[1]
    gc.collect()
    assert held() is None
    assert failure.type == "RuntimeError"
