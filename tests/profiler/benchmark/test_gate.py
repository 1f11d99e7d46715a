"""The statistical gate: its test against counting, its verdicts, its files, and its subcommands."""

from __future__ import annotations

import json
import random
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep_otel.profiler.benchmark.baseline import card_of
from acestep_otel.profiler.benchmark.gate import ALPHA, Judgement, judge, rank_sum_p
from acestep_otel.profiler.benchmark.gate_report import render_gate, render_junit, render_markdown
from acestep_otel.profiler.benchmark.matrix import Cell
from acestep_otel.profiler.cli import main
from benchmarks.gate import failures, simulated

CELL = Cell(duration=30.0, batch_size=1, thinking=False, inference_steps=8)
BEFORE = [1.00, 1.01, 0.99, 1.02, 0.98, 1.005, 0.995]


def counted_p(before: list[float], after: list[float]) -> float:
    """By going through every way to divide the values into two samples."""
    values = [*before, *after]

    def larger(second: tuple[int, ...]) -> int:
        first = [value for index, value in enumerate(values) if index not in second]
        return sum(values[index] > value for index in second for value in first)

    seen = larger(tuple(range(len(before), len(values))))
    ways = [larger(chosen) for chosen in combinations(range(len(values)), len(after))]
    return sum(way >= seen for way in ways) / len(ways)


distinct = st.lists(st.integers(0, 10**6), min_size=2, max_size=9, unique=True)


@given(distinct, st.data())
@settings(max_examples=60)
def test_p_is_the_share_of_all_arrangements(values: list[int], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(values) - 1))
    before, after = list(map(float, values[:cut])), list(map(float, values[cut:]))
    assert rank_sum_p(before, after) == pytest.approx(counted_p(before, after))


@pytest.mark.parametrize(("runs", "smallest"), [(3, 1 / 20), (4, 1 / 70), (5, 1 / 252), (7, 1 / 3432)])
def test_the_smallest_p_is_that_of_the_tables(runs: int, smallest: float) -> None:
    before, after = [float(number) for number in range(runs)], [float(runs + number) for number in range(runs)]
    assert rank_sum_p(before, after) == pytest.approx(smallest)
    assert rank_sum_p(after, before) == 1.0


def test_runs_that_are_all_the_same_are_no_evidence() -> None:
    assert rank_sum_p([1.0] * 7, [1.0] * 7) >= 0.5


def judged(
    after: list[list[float]], *, tolerance: float = 0.03, before: list[float] = BEFORE, floor: float = 0.0
) -> Judgement:
    columns = {"wall_time": before}
    found = judge([{CELL: columns}], [{CELL: {"wall_time": runs}} for runs in after], {"wall_time": tolerance}, floor)
    return next(each for each in found if each.column == "wall_time")


def times(factor: float) -> list[float]:
    return [value * factor for value in BEFORE]


def test_a_figure_that_is_clearly_slower_fails_with_its_difference() -> None:
    found = judged([times(1.10)])
    assert found.verdict == "slower"
    assert found.change == pytest.approx(0.10)
    assert found.p is not None
    assert found.p < ALPHA
    assert "+10.0 %" in found.why


@pytest.mark.parametrize(
    ("after", "tolerance", "floor"),
    [
        ([times(1.025)], 0.03, 0.0),
        ([times(1.10)], 0.15, 0.0),
        ([times(1.10)], 0.03, 0.2),
        # One process may be in a slow session of the machine.
        ([times(1.10), times(1.0)], 0.03, 0.0),
        ([[*BEFORE[:-1], 9.0]], 0.03, 0.0),
    ],
    ids=["within the tolerance", "within a wider one", "within the noise", "not confirmed", "one outlier"],
)
def test_a_figure_passes(after: list[list[float]], tolerance: float, floor: float) -> None:
    assert judged(after, tolerance=tolerance, floor=floor).verdict == "ok"


def test_a_slowdown_that_every_process_has_fails() -> None:
    assert judged([times(1.10), times(1.08)]).verdict == "slower"


def test_a_figure_that_is_clearly_faster_is_said() -> None:
    assert judged([times(0.9)]).verdict == "faster"


def test_the_tolerance_is_at_least_the_spread_of_the_baseline_processes() -> None:
    processes = [{CELL: {"wall_time": times(factor)}} for factor in (1.0, 1.2, 1.1, 1.05)]
    for factor, verdict in ((1.25, "ok"), (1.5, "slower")):
        found = judge(processes, [{CELL: {"wall_time": times(factor)}}], {})[0]
        assert (found.column, found.verdict) == ("wall_time", verdict)
        assert found.tolerance == pytest.approx(0.2)


def test_too_few_runs_are_not_judged_and_a_cell_that_fails_now_is_slower() -> None:
    few = judged([[1.1, 1.2, 1.3]])
    assert (few.verdict, few.p) == ("not judged", None)
    assert "--repeat" in few.why
    assert judged([[]]).verdict == "slower"
    assert judged([[0.0] * 7], before=[0.0] * 7).verdict == "not judged"


def test_equal_runs_rarely_fail_and_a_tenth_more_mostly_does() -> None:
    """The rates that the documentation states, from the same simulation."""
    assert simulated(7, 1.0, 0.0, 0.0, confirmed=False) <= 0.001
    assert simulated(7, 1.0, 1.0, 0.0, confirmed=False) <= 0.05
    assert simulated(7, 1.0, 1.0, 0.0, confirmed=True) <= 0.015
    assert simulated(7, 1.0, 1.0, 0.10, confirmed=True) >= 0.95


def test_false_alarms_are_counted_over_draws_of_equal_sessions() -> None:
    draw = random.Random(3)
    equal = [[1 + draw.gauss(0, 0.001) for _ in range(7)] for _ in range(6)]
    assert failures(equal, 1) == {"baselines": 1, "failed_alone": 0.0, "failed_confirmed": 0.0}
    other = failures([*equal, [2.0 + draw.random() / 100 for _ in range(7)]], 1)
    assert 0.05 < float(other["failed_alone"]) < 0.25
    assert other["failed_confirmed"] == 0.0


def test_the_files_for_continuous_integration_say_the_same() -> None:
    found = [judged([times(1.10)]), judged([[1.0]]), judged([times(1.0)])]
    suite = ElementTree.fromstring(render_junit("a card", found))
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    assert [[child.tag for child in case] for case in suite] == [["failure"], ["skipped"], []]
    page = render_markdown("a card", found)
    assert "**1 of 3 figures are slower**" in page
    assert page.index("✗ slower") < page.index("✓ ok") < page.index("· not judged")
    assert "Not judged: 1 of 3" in render_gate(found)


# --- The subcommands, on files that a real benchmark has written -----------------------------------------------------


@pytest.fixture(scope="module")
def benchmark_result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A benchmark of the tiny models, run for real with few cells."""
    folder = tmp_path_factory.mktemp("benchmark")
    path = folder / "result.json"
    arguments = ("--tiny", "--device", "cpu", "--mode", "benchmark", "--duration", "10", "--batch-size", "1")
    steps = ("--inference-steps", "1", "--repeat", "5", "--no-progress", "--output-dir", str(folder))
    assert main([*arguments, *steps, "--benchmark-output", str(path)]) == 0
    document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return document


def scaled(document: dict[str, Any], factor: float) -> dict[str, Any]:
    """The same benchmark with every run as many times as long, and runs that differ by a percent."""
    copy: dict[str, Any] = json.loads(json.dumps(document))
    for row in copy["results"]:
        for number, run in enumerate(row["runs"]):
            if (measurement := run["measurement"]) is not None:
                measurement["wall"] = factor * (1 + number / 500)
    return copy


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, benchmark_result: dict[str, Any]) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, factor in (("before", 1.0), ("same", 1.002), ("slow", 1.2)):
        (tmp_path / f"{name}.json").write_text(json.dumps(scaled(benchmark_result, factor)), "utf-8")
    return tmp_path


def test_a_baseline_is_kept_by_its_card_and_judged_against(
    folder: Path, benchmark_result: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    # Only the wall times were made up: the others are of a busy machine.
    loose = [word for column in ("lm_time", "dit_time", "vae_time") for word in ("--tolerance", f"{column}=9")]
    assert main(["baseline", "before.json", *loose, "--tolerance", "wall_time=0.05"]) == 0
    (kept,) = (folder / "benchmarks" / "baselines").iterdir()
    assert kept.stem == card_of(benchmark_result["environment"])
    assert json.loads(kept.read_text("utf-8"))["tolerances"]["wall_time"] == 0.05
    assert main(["compare", "--baseline", "same.json"]) == 0
    assert main(["compare", "--baseline", "slow.json", "--junit", "j.xml", "--markdown", "m.md"]) == 1
    assert "figures are slower than the baseline" in capsys.readouterr().err
    assert ElementTree.parse(folder / "j.xml").getroot().get("failures") != "0"
    assert "✗ slower" in (folder / "m.md").read_text("utf-8")
    # Slower in one process only.
    assert main(["compare", "--baseline", "slow.json", "same.json"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--baseline", "same.json"], "has no baseline of"),
        (["compare", "before.json"], "Missing argument 'B.json'"),
        (["compare", "before.json", "same.json", "slow.json"], "several candidates need --baseline"),
        (["compare", "before.json", "same.json", "--junit", "j.xml"], "need --baseline"),
        (["compare", "--baseline", "same.json", "--output", "o.json"], "use --junit or --markdown"),
        (["baseline", "before.json", "--tolerance", "wall_time=much"], "COLUMN=SHARE"),
        (["baseline", "before.json", "--tolerance", "beauty=0.1"], "there is no column 'beauty'"),
        (["baseline", "missing.json"], "missing.json"),
    ],
)
def test_wrong_usage_is_one_line(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_damaged_baseline_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["baseline", "before.json"]) == 0
    (kept,) = (folder / "benchmarks" / "baselines").iterdir()
    kept.write_text('{"baseline_version": 7}', "utf-8")
    assert main(["compare", "--baseline", "same.json"]) == 2
    assert "is not a baseline of version 1" in capsys.readouterr().err


def test_a_card_has_a_unique_file_name() -> None:
    accelerator = {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 84_929_347_584, "driver": None}
    assert card_of({"accelerators": [accelerator]}) == "nvidia-h100-80gb-hbm3-79gib"
    assert card_of({"accelerators": [], "cpu": "AMD EPYC", "cpu_cores": 2}) == "amd-epyc-2-cores"
