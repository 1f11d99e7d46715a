"""The roofline of a run in terminal, result file and page, from the figures on its spans."""

from __future__ import annotations

import re

import pytest

from acestep_otel import semconv
from acestep_otel.profiler.report.breakdown import Breakdown
from acestep_otel.profiler.report.html.roofline import roofline_section
from acestep_otel.profiler.report.spans import FinishedSpan, Run
from acestep_otel.profiler.report.stage_work import RunWork
from acestep_otel.profiler.report.terminal import render_breakdown
from acestep_otel.profiler.report.work_table import ceilings, render_work
from tests.profiler.report.recorded import run_of, span

PEAKS = {
    semconv.DEVICE_PEAK_OPERATIONS: 989.5e12,
    semconv.DEVICE_PEAK_BANDWIDTH: 3.35e12,
    semconv.DEVICE_PEAK_SOURCE: "datasheet",
}


def work(operations: float, moved: float, share: float | None = None, bound: str = "compute") -> dict[str, object]:
    known = {} if share is None else {semconv.ROOFLINE_SHARE: share, semconv.ROOFLINE_BOUND: bound}
    return {semconv.WORK_OPERATIONS: operations, semconv.WORK_BYTES: moved, **known}


def working_run(*, with_peaks: bool = True) -> Run:
    def of(operations: float, moved: float, share: float, bound: str = "compute") -> dict[str, object]:
        return work(operations, moved, share if with_peaks else None, bound)

    root = span(semconv.GENERATE_MUSIC, 0, 4.0, attributes=PEAKS if with_peaks else {})
    planner = span(semconv.LM, 0.0, 1.5, root, of(1e12, 1e12, 0.2, "launch"))
    codes = span(semconv.LM_CODES, 0.1, 1.4, planner, of(1e12, 1e12, 0.2, "launch"))
    dit = span(semconv.DIT, 1.5, 2.0, root, {semconv.DIT_STEPS: 2, **of(8e14, 2e11, 0.41)})
    steps = [
        span(semconv.DIT_STEP, 1.5, 0.5, dit, of(4e14, 1e11, 0.8)),
        span(semconv.DIT_STEP, 2.0, 1.5, dit, of(4e14, 1e11, 0.28, "memory")),
    ]
    vae = span(semconv.VAE_DECODE, 3.5, 0.4, root, of(2e12, 4e11, 0.3, "memory"))
    return run_of([root, planner, codes, dit, *steps, vae])


def test_spans_of_one_name_are_added_up_and_the_longest_bound_counts() -> None:
    steps = RunWork.of(working_run()).stages[semconv.DIT_STEP]
    assert (steps.stage, steps.spans, steps.seconds) == ("dit.step", 2, 2.0)
    assert (steps.operations, steps.bytes, steps.intensity) == (8e14, 2e11, 4000)
    assert steps.share == pytest.approx((0.8 * 0.5 + 0.28 * 1.5) / 2)
    assert steps.bound == "memory"
    assert steps.operation_rate == 4e14


def test_the_breakdown_has_the_column_where_it_is_asked_for() -> None:
    run = working_run()
    plain, wide = render_breakdown(Breakdown.of(run)), render_breakdown(Breakdown.of(run), RunWork.of(run))
    assert "Roofline" not in plain
    cells = {line[:37].strip(): line[60:].strip() for line in wide.splitlines()}
    assert cells["DiT Diffusion (total)"] == "41% compute"
    assert cells["├─ Per-step average"] == "41% memory"
    assert cells["LLM Planning (total)"] == "20% launch"
    assert cells["VAE Decode"] == "30% memory"
    assert cells["Wall Time (total)"] == cells["Audio Save"] == ""
    # Whoever reads the layout of the guide still finds it.
    assert [line[:60].rstrip() for line in wide.splitlines()[4:-2]] == plain.splitlines()[4:-2]


def test_the_table_has_the_figures_and_what_the_shares_are_shares_of() -> None:
    table = render_work(RunWork.of(working_run()))
    (line,) = [line.split() for line in table.splitlines() if line.startswith("  dit  ")]
    assert line == ["dit", "2.000", "800", "200", "4000", "400", "0.100", "41%", "compute"]
    assert "Peaks: 990 TFLOP/s and 3.35 TB/s (datasheet)" in table


def test_without_peaks_the_rates_stay_and_the_way_to_the_share_is_named() -> None:
    found = RunWork.of(working_run(with_peaks=False))
    assert found.stages[semconv.DIT].share is None
    assert found.stages[semconv.DIT].operation_rate == 4e14
    assert "doctor --measure-device" in ceilings(found)
    assert "—" in render_breakdown(Breakdown.of(working_run(with_peaks=False)), found)


def test_a_run_with_unknown_work_has_a_note() -> None:
    run = run_of([span(semconv.GENERATE_MUSIC, 0, 1.0)])
    assert "No work is known" in render_work(RunWork.of(run))
    assert RunWork.of(run).to_json() is None
    assert roofline_section(run) is None


def test_the_drawing_puts_dots_below_the_roof_where_their_share_is_below_one() -> None:
    section = roofline_section(working_run())
    assert section is not None
    chart = section.chart
    corners = [tuple(map(float, corner.split(","))) for corner in chart.roof.split()]
    assert len(corners) == 3
    (left, low), (ridge_x, ridge_y), (right, level) = corners
    assert left < ridge_x < right
    assert low > ridge_y == level
    for dot in chart.dots:
        height = level if dot.x >= ridge_x else low + (ridge_y - low) * (dot.x - left) / (ridge_x - left)
        # Down is larger in a drawing.
        assert dot.y > height
    assert [dot.name for dot in chart.dots] == ["lm.codes", "dit", "vae.decode"]
    assert re.search(r"dit: .*FLOP/B.*41\.0% of the roofline, compute-bound", chart.dots[1].title)
    assert dict(section.verdicts)["lm.codes"] == "20.0% of the roofline, " + (
        "launch-bound: the device waited for the host"
    )
    assert [row[0] for row in section.table.rows] == ["lm", "lm.codes", "dit.step", "dit", "vae.decode"]


def test_a_drawing_without_peaks_has_dots_and_no_roof() -> None:
    section = roofline_section(working_run(with_peaks=False))
    assert section is not None
    assert section.chart.roof == ""
    assert len(section.chart.dots) == 3
    assert section.verdicts == ()


def test_a_stage_that_took_no_time_is_omitted() -> None:
    root = span(semconv.GENERATE_MUSIC, 0, 1.0)
    empty: FinishedSpan = span(semconv.DIT, 0.1, 0.0, root, work(1.0, 1.0))
    assert RunWork.of(run_of([root, empty])).stages == {}
