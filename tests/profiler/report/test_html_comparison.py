"""The page of compare: the verdict, every ratio, what differs, and a picture of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep_otel.profiler.benchmark.comparison import Comparison, ResultFile
from acestep_otel.profiler.benchmark.matrix import Cell, Figures
from acestep_otel.profiler.report.html.comparison import render_comparison_page, write_comparison_page
from tests.browser import screenshot, visit
from tests.profiler.report.test_html import HOSTILE, Page, colours

PLAIN, THINKING, LOST = Cell(30.0, 1, False, 8), Cell(30.0, 1, True, 8), Cell(60.0, 2, False, 8)
BEFORE = ResultFile(
    "before.json", "benchmark", "A GPU, torch 2.13.0",
    {PLAIN: Figures(2.0, 0.0, 1.5, 0.4), THINKING: Figures(4.0, 2.0, 1.5, 0.4), LOST: Figures(8.0, 0.0, 6.0, 1.6)},
    {PLAIN: {"compile": False, "lm_backend": None}, THINKING: {"compile": False}},
    planned=3,
)  # fmt: skip
AFTER = replace(
    BEFORE,
    name="after.json",
    cells={PLAIN: Figures(1.8, 0.0, 1.3, 0.4), THINKING: Figures(5.0, 3.0, 1.5, 0.4), LOST: None},
    settings={PLAIN: {"compile": True, "lm_backend": "pt"}, THINKING: {"compile": True}},
)


def page(before: ResultFile = BEFORE, after: ResultFile = AFTER, command: str | None = None) -> Page:
    return Page(render_comparison_page(Comparison.of(before, after, 1.1, 0.005), command))


def test_the_verdict_is_first() -> None:
    texts = page().texts
    assert "B does not pass: 3 regressions; cells that are slower: 1 of 3." in texts
    one_cell = {PLAIN: Figures(1.8, 0.0, 1.3, 0.4)}
    assert (
        "B passes: its wall times are × 0.90 those of A." in page(after=replace(AFTER, cells=one_cell, planned=1)).texts
    )
    range_of = {PLAIN: Figures(1.8, 0.0, 1.3, 0.4), THINKING: Figures(4.2, 2.1, 1.5, 0.4)}
    assert (
        "B passes: its wall times are × 0.90 to × 1.05 those of A."
        in page(after=replace(AFTER, cells=range_of, planned=2)).texts
    )


def test_every_figure_has_its_ratio_and_the_times_behind_it() -> None:
    found = page()
    start = found.texts.index("30 s x 1, thinking, 8 steps")
    assert found.texts[start + 1 : start + 10] == [
        "× 1.25", "4.00 s → 5.00 s", "× 1.50", "2.00 s → 3.00 s", "× 1.00", "1.50 s → 1.50 s", "× 1.00",
        "400 ms → 400 ms", "SLOWER",
    ]  # fmt: skip
    start = found.texts.index("60 s x 2, not thinking, 8 steps")
    assert found.texts[start + 1 : start + 3] == ["—", "8.00 s → —"]
    assert "failed in B" in found.texts
    # A stage that took no time in either file.
    assert found.row("30 s x 1, not thinking, 8 steps")[0] == "× 0.90"


def test_a_ratio_that_does_not_pass_has_the_digits_that_show_it() -> None:
    """N18: a ratio of 1.1004 is no 1.10."""
    close = replace(AFTER, cells={PLAIN: Figures(2.2008, 0.5, 1.5, 0.4)}, planned=1)
    found = page(after=close)
    assert found.row("30 s x 1, not thinking, 8 steps")[0] == "× 1.1004"
    assert "from 0 to 0.500 s" in found.texts


def test_a_threshold_far_beyond_every_bar_has_no_line() -> None:
    def source(threshold: float) -> str:
        return render_comparison_page(Comparison.of(BEFORE, AFTER, threshold))

    assert "× 1.10: more does not pass" in source(1.1)
    assert "more does not pass" not in source(100)


def test_a_stopped_run_and_cells_of_one_file_are_named() -> None:
    fewer = {PLAIN: Figures(1.8, 0.0, 1.3, 0.4)}
    texts = page(after=replace(AFTER, cells=fewer, planned=3)).texts
    assert any("after.json: stopped after 1 of 3 cells." in text for text in texts)
    assert f"Only in A: {THINKING}" in texts


def test_settings_that_differ_are_listed_once() -> None:
    found = page()
    assert found.row("compile") == ["off", "on"]
    assert found.texts.count("compile") == 1
    assert found.row("lm_backend") == ["—", "pt"]
    assert "Settings that differ" not in page(after=replace(AFTER, settings=BEFORE.settings)).texts


def test_without_a_time_in_both_files_there_is_no_chart() -> None:
    failed = {PLAIN: None}
    texts = page(replace(BEFORE, cells=failed), replace(AFTER, cells=failed, planned=1)).texts
    assert "No cell has a time in both files, so there is nothing to draw." in texts
    assert "B passes, but no cell has a time in both files." in texts
    assert "failed in both" in texts


@settings(max_examples=20, deadline=None)
@given(st.one_of(st.just(HOSTILE), st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)))
def test_what_the_files_say_stays_text(written: str) -> None:
    def hostile(text: str) -> Page:
        told: dict[str, Any] = {"name": text, "environment": text, "settings": {PLAIN: {"dit_model": text}}}
        return page(replace(BEFORE, **told), replace(AFTER, name=text, settings={PLAIN: {"dit_model": "y"}}), text)

    assert hostile(written).tags == hostile("x").tags


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it_in_its_colours(tmp_path: Path, scheme: Literal["light", "dark"]) -> None:
    path = tmp_path / "compared.html"
    write_comparison_page(path, Comparison.of(BEFORE, AFTER, 1.1), "acestep-otel compare before.json after.json")
    seen = visit(path)
    assert (seen.console, seen.requests) == ([], [])
    pixels = Counter(screenshot(path, scheme, height=1200).get_flattened_data())
    for name in ("vae", "alarm", "card", "ink"):
        assert pixels[colours(scheme)[name]] > 100, name
