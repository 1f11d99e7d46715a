"""The tables of a benchmark: the guide's to the letter."""

from __future__ import annotations

from acestep_otel.profiler.benchmark.comparison import Comparison, ResultFile
from acestep_otel.profiler.benchmark.matrix import Cell, CellResult, Failure, Figures
from acestep_otel.profiler.benchmark.matrix_table import render_comparison, render_matrix, render_spread

# The output example of the benchmark guide.
GUIDE = """\
Duration   Batch   Think   Steps   Wall(s)    LM(s)      DiT(s)     VAE(s)     Status
--------------------------------------------------------------------------------------------------------------------------
30         1       False   8       3.21       0.45       1.89       0.52       OK
30         1       True    8       5.67       2.91       1.89       0.52       OK
60         2       False   16      12.34      0.48       9.12       1.85       OK"""


def row(cell: Cell, *runs: Figures, failure: Failure | None = None) -> CellResult:
    return CellResult(cell, runs, failure, ())


def test_the_guides_rows_come_out_as_printed_there() -> None:
    """R42, R43."""
    rows = [
        row(Cell(30.0, 1, False, 8), Figures(3.21, 0.45, 1.89, 0.52)),
        row(Cell(30.0, 1, True, 8), Figures(5.67, 2.91, 1.89, 0.52)),
        row(Cell(60.0, 2, False, 16), Figures(12.34, 0.48, 9.12, 1.85)),
    ]
    assert render_matrix(rows) == GUIDE


def test_a_failed_cell_shows_its_error_and_no_time() -> None:
    """R46."""
    failed = row(Cell(240, 4, True, 16), failure=Failure("OutOfMemory", "no room", "dit"))
    line = render_matrix([failed]).splitlines()[-1]
    assert line == "240        4       True    16      —          —          —          —          OutOfMemory"


def test_the_spread_is_beside_the_minimum() -> None:
    rows = [
        row(Cell(12.5, 1, False, 8), Figures(1, 0, 0.5, 0.25), Figures(1.5, 0, 0.5, 0.25)),
        row(Cell(30, 1, False, 8), failure=Failure("OutOfMemory", "no room", "dit")),
    ]
    _, header, _, spread, failed = render_spread(rows).splitlines()
    assert header.startswith("Duration   Batch   Think   Steps   Wall(s)")
    assert spread == "12.5       1       False   8       1.00 + 0.50     0.00 + 0.00     0.50 + 0.00     0.25 + 0.00"
    assert failed.split() == ["30", "1", "False", "8", "—", "—", "—", "—"]


def test_a_comparison_names_both_machines_and_every_missing_cell() -> None:
    shared, first, second, broken = (Cell(duration, 1, False, 8) for duration in (30, 60, 120, 240))
    one = Figures(1, 0, 1, 1)
    a = ResultFile("a.json", "benchmark", "H100, torch 2.13", {shared: one, first: one, broken: one})
    b = ResultFile("b.json", "benchmark", "CPU", {shared: Figures(1.2, 0, 1, 0.5), second: one, broken: None})
    lines = render_comparison(Comparison.of(a, b, 1.1)).splitlines()
    assert lines[:2] == ["A: a.json (H100, torch 2.13)", "B: b.json (CPU)"]
    assert lines[5] == "30         1       False   8       1.20       —          1.00       0.50       SLOWER"
    assert lines[6].endswith("failed in B")
    assert lines[7:] == ["only in A: 60 s x 1, not thinking, 8 steps", "only in B: 120 s x 1, not thinking, 8 steps"]
