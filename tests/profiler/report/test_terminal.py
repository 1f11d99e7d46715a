"""The breakdown on the terminal (R148 ... R152): the benchmark guide's sample, to the byte."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from acestep_otel.profiler.report.breakdown import Breakdown
from acestep_otel.profiler.report.terminal import render_breakdown
from tests.profiler.report.recorded import guide_spans, run_of

GUIDE_TABLE = """\
TIME COSTS BREAKDOWN
====================================================================================================
  Component                          Time (s)       % of Total
  ─────────────────────────────────────────────────────────────
  LLM Planning (total)               2.91           45.2%
    ├─ Token generation              2.45           38.1%
    ├─ Constrained decoding          0.31            4.8%
    └─ CFG overhead                  0.15            2.3%
  DiT Diffusion (total)              1.89           29.4%
    ├─ Per-step average              0.24            —
    └─ Steps                         8               —
  VAE Decode                         0.52            8.1%
  Audio Save                         0.12            1.9%
  Other / Overhead                   0.99           15.4%
  ─────────────────────────────────────────────────────────────
  Wall Time (total)                  6.43          100.0%"""


def test_the_guides_sample_is_reproduced_to_the_byte() -> None:
    """R148 ... R150, R152: title, columns, rows, nesting, order, a wall time of 100.0%, steps and their average."""
    assert render_breakdown(Breakdown.of(run_of(guide_spans()))) == GUIDE_TABLE


def test_a_run_without_planner_shows_zeros_there() -> None:
    table = render_breakdown(Breakdown(wall=2.0, diffusion=1.5, steps=16))
    assert "  LLM Planning (total)               0.00            0.0%" in table
    assert "    └─ CFG overhead                  0.00            0.0%" in table
    assert "    └─ Steps                         16              —" in table


def test_figures_that_do_not_exist_are_dashes() -> None:
    lines = render_breakdown(Breakdown(wall=2.0, planner=1.0, guidance=None)).splitlines()
    assert "    └─ CFG overhead                  —               —" in lines
    assert "    ├─ Per-step average              —               —" in lines


def test_rounding_leaves_no_negative_zero() -> None:
    assert "-0.0" not in render_breakdown(Breakdown(wall=1.0, diffusion=1.0 + 1e-9))


@given(st.floats(0.001, 9999), st.floats(0, 1), st.integers(1, 200))
def test_columns_hold_for_any_time(wall: float, share: float, steps: int) -> None:
    table = render_breakdown(Breakdown(wall=wall, diffusion=wall * share, steps=steps))
    for line in table.splitlines()[4:14] + table.splitlines()[15:]:
        assert re.fullmatch(r".{37}\S+", line[:51].rstrip())
        assert line[51:].strip() == "—" or re.fullmatch(r" {0,2}\d+\.\d%", line[51:])
