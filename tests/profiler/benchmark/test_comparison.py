"""Two result files side by side: what passes, what does not, what cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep_otel.profiler.benchmark.comparison import ComparedCell, Comparison, IncomparableResults, ResultFile
from acestep_otel.profiler.benchmark.matrix import Cell, Figures

CELL = Cell(30, 1, False, 8)
seconds = st.floats(1e-3, 1e3)
figures = st.builds(Figures, seconds, seconds, seconds, seconds)


def result_file(cells: dict[Cell, Figures | None], mode: str = "benchmark", name: str = "a.json") -> ResultFile:
    return ResultFile(name, mode, "", cells)


@given(figures, figures, st.floats(1, 5))
def test_a_column_is_slower_when_its_ratio_passes_the_threshold(
    before: Figures, after: Figures, threshold: float
) -> None:
    compared = ComparedCell(CELL, before, after)
    expected = [name for name, a, b in zip(compared.ratios, before, after, strict=True) if b / a > threshold]
    assert compared.slower(threshold) == expected


@given(figures, figures, st.floats(1, 5), st.floats(0, 10))
def test_what_a_column_lost_must_also_be_more_than_noise(
    before: Figures, after: Figures, threshold: float, noise_floor: float
) -> None:
    compared = ComparedCell(CELL, before, after)
    slower = compared.slower(threshold, noise_floor)
    assert set(slower) <= set(compared.slower(threshold))
    for column in compared.slower(threshold):
        assert (column in slower) == (getattr(after, column) - getattr(before, column) > noise_floor)


@given(figures)
def test_a_file_is_as_fast_as_itself(one: Figures) -> None:
    comparison = Comparison.of(result_file({CELL: one}), result_file({CELL: one}), 1.0)
    assert comparison.regressions == []
    assert set(comparison.cells[0].ratios.values()) == {1.0}


def test_a_stage_that_took_no_time_has_no_ratio() -> None:
    compared = ComparedCell(CELL, Figures(1, 0, 1, 1), Figures(1, 0, 1, 1))
    assert compared.ratios["lm_time"] is None


def test_a_cell_that_fails_only_in_the_second_file_does_not_pass() -> None:
    one = Figures(1, 1, 1, 1)
    assert Comparison.of(result_file({CELL: one}), result_file({CELL: None}), 9).regressions == [f"{CELL}: failed"]
    assert Comparison.of(result_file({CELL: None}), result_file({CELL: one}), 9).regressions == []


def test_files_of_two_modes_are_refused() -> None:
    one = {CELL: Figures(1, 1, 1, 1)}
    with pytest.raises(IncomparableResults, match=r"a\.json is of mode benchmark and b\.json of mode profile"):
        Comparison.of(result_file(one), result_file(one, "profile", "b.json"), 1.1)


def test_files_without_a_common_cell_are_refused() -> None:
    one = Figures(1, 1, 1, 1)
    with pytest.raises(IncomparableResults, match="no configuration in common"):
        Comparison.of(result_file({CELL: one}), result_file({Cell(60, 1, False, 8): one}), 1.1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1, column 2"),
        ("[]", "not a result file of version 1"),
        ('{"schema_version": 2}', "not a result file of version 1"),
        ('{"schema_version": 1, "mode": "understand"}', "is a required property"),
        ('{"schema_version": 1, "mode": "benchmark"}', "is a required property"),
    ],
)
def test_what_is_no_result_file_is_refused_by_name(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(IncomparableResults, match=message) as raised:
        ResultFile.read(path)
    assert str(path) in str(raised.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IncomparableResults, match="there is no file"):
        ResultFile.read(tmp_path / "none.json")


def test_the_comparison_file_contains_every_ratio() -> None:
    other = Cell(60, 1, True, 8)
    one, two = Figures(1, 0, 1, 1), Figures(2, 0, 1, 1)
    written = Comparison.of(result_file({CELL: one, other: one}), result_file({CELL: two}), 1.1).to_json()
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    (cell,) = written["cells"]
    assert cell["ratios"] == {"wall_time": 2, "lm_time": None, "dit_time": 1, "vae_time": 1}
    assert cell["slower"] == ["wall_time"]
    assert [cell["thinking"] for cell in written["only_in_baseline"]] == [True]
