"""The page of a tier test: peaks against cards, in words, in a table and in a browser."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from acestep_otel.profiler.report.html import render_report, write_report
from acestep_otel.profiler.report.html.tiers import tier_section
from acestep_otel.profiler.tier_test.trials import GIB, Observation
from tests.browser import screenshot, visit
from tests.profiler.report.test_html import Page, colours, report
from tests.profiler.tier_test.tier_rows import memory_use, observation, row, trial

OVER = replace(row(12), status="failed", observation=observation(trial(12), 12.4))
ROWS = (row(8, peak=6.2), row(8, "no-offload", "out_of_memory"), OVER, row(20, "no-quant", "skipped"), row(24, peak=17))


def test_bars_are_as_long_as_what_they_stand_for() -> None:
    figure = tier_section(ROWS)
    assert figure is not None
    assert figure.chart is not None
    lengths = {bar.title: bar.width for bar in figure.chart.bars}
    per_gib = lengths["24 GB default: ok, card of 24.0 GiB"] / 24
    assert lengths["8 GB default: ok, card of 8.00 GiB"] == pytest.approx(8 * per_gib, abs=0.02)
    assert lengths["8 GB default: ok, peak 6.20 GiB"] == pytest.approx(6.2 * per_gib, abs=0.02)
    # Beyond its card.
    assert lengths["12 GB default: failed, peak 12.4 GiB"] > lengths["12 GB default: failed, card of 12.0 GiB"]


def test_a_row_that_did_not_pass_shows_by_sign_and_style_and_a_skipped_one_has_no_bar() -> None:
    figure = tier_section(ROWS)
    assert figure is not None
    assert figure.chart is not None
    assert [label.text for label in figure.chart.labels] == [
        "8 GB default", "✗ 8 GB no-offload", "✗ 12 GB default", "24 GB default",
    ]  # fmt: skip
    assert [bar.style for bar in figure.chart.bars if "12 GB" in bar.title][1] == "process-over"
    assert "3 of 4" not in figure.chart.summary
    assert "2 of 4 rows passed" in figure.chart.summary


def test_the_table_has_every_row_and_the_reason() -> None:
    texts = Page(render_report(report(tiers=ROWS))).texts
    assert "What fits on which card?" in texts
    assert texts.count("no room for 3 GiB") == 2
    position = texts.index("8 GB default")
    assert "6.20 GiB" in texts[position:]
    assert "skipped" in texts


def test_rows_without_an_enforced_limit_are_counted_above_the_chart() -> None:
    caution = "No limit was enforced in 1 of 3 rows: they show what runs, not what fits."
    loose = replace(observation(trial(12), 3.0), cap=None)
    rows = (row(8), replace(row(12), observation=loose), row(16), row(20, "no-quant", "skipped"))
    assert caution in Page(render_report(report(tiers=rows))).texts
    assert not [text for text in Page(render_report(report(tiers=rows[:1]))).texts if "No limit" in text]


def test_a_page_without_rows_has_no_such_section() -> None:
    assert "Tier test" not in Page(render_report(report())).texts
    assert tier_section(()) is None


def test_without_a_peak_there_is_a_table_and_no_chart() -> None:
    seen = Observation("cpu", None, True)
    rows = tuple(replace(found, observation=seen) for found in (row(8), row(16)))
    figure = tier_section(rows)
    assert figure is not None
    assert figure.chart is None
    source = render_report(report(tiers=rows))
    page = Page(source)
    assert "No row has a memory peak, so there is nothing to draw." in page.texts
    assert "memory of the card" not in page.texts
    assert source.count("<details open>") == 1
    assert page.texts.count("8 GB default") == 1
    assert "No limit was enforced in 2 of 2 rows: they show what runs, not what fits." in page.texts


def test_what_the_driver_did_not_say_is_absent() -> None:
    seen = replace(observation(trial(8), 3.0), memory=memory_use(3.0, driver=None))
    figure = tier_section((replace(row(8), observation=seen),))
    assert figure is not None
    columns = dict(zip(figure.table.columns, figure.table.rows[0], strict=True))
    assert (columns["Driver"], columns["Peak"], columns["Limit"]) == ("—", "3.00 GiB", "8.00 GiB")
    assert memory_use(3.0).peak == 3 * GIB


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it_in_its_colours(tmp_path: Path, scheme: Literal["light", "dark"]) -> None:
    path = tmp_path / "tiers.html"
    write_report(path, report(mode="tier-test", tiers=ROWS))
    seen = visit(path)
    assert (seen.console, seen.requests) == ([], [])
    pixels = Counter(screenshot(path, scheme, height=1200).get_flattened_data())
    for name in ("vae", "alarm", "dit", "other", "card"):
        assert pixels[colours(scheme)[name]] > 100, name
