"""Progress bars appear on a terminal only, and finished stages show as finished."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from acestep.types import Progress
from acestep_otel.profiler.benchmark.matrix import Cell
from acestep_otel.profiler.run.progress import CellBar, ProgressBars, TrialBar
from tests.profiler.tier_test.tier_rows import trial


def drawn(*, terminal: bool, enabled: bool) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100)
    with ProgressBars("profile", enabled=enabled, console=console) as progress:
        for done in range(1, 9):
            progress(Progress("dit", done, 8))
    return stream.getvalue()


def test_a_terminal_shows_the_stage_and_how_far_it_is() -> None:
    shown = drawn(terminal=True, enabled=True)
    assert "profile dit" in shown
    assert "8/8" in shown


@pytest.mark.parametrize(("terminal", "enabled"), [(False, True), (True, False)])
def test_there_are_no_bars_elsewhere_or_when_switched_off(terminal: bool, enabled: bool) -> None:
    assert "dit" not in drawn(terminal=terminal, enabled=enabled)


def test_a_stage_of_unknown_length_is_shown() -> None:
    stream = io.StringIO()
    with ProgressBars(
        "profile", enabled=True, console=Console(file=stream, force_terminal=True, width=100)
    ) as progress:
        progress(Progress("lm.cot", 17, None))
    assert "lm.cot" in stream.getvalue()


def drawn_cells(*, terminal: bool, enabled: bool) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120, color_system=None)
    cells = [Cell(30, 1, False, 8), Cell(240, 4, True, 16)]
    with CellBar(cells, enabled=enabled, console=console) as bar:
        for cell in cells:
            bar.start(cell)
            bar.finish(cell)
    return stream.getvalue()


def test_a_benchmark_shows_its_cell_and_the_time_left() -> None:
    shown = drawn_cells(terminal=True, enabled=True)
    assert "cell 2/2: 240 s x 4, thinking, 16 steps" in shown
    assert "left 0:00:00" in shown


@pytest.mark.parametrize(("terminal", "enabled"), [(False, True), (True, False)])
def test_a_benchmark_has_no_bar_elsewhere_or_when_switched_off(terminal: bool, enabled: bool) -> None:
    assert "cell" not in drawn_cells(terminal=terminal, enabled=enabled)


def drawn_trials(*, terminal: bool, enabled: bool) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120, color_system=None)
    trials = [trial(8), trial(16, lm_model="acestep-5Hz-lm-1.7B")]
    with TrialBar(trials, enabled=enabled, console=console) as bar:
        bar.finish(trials[:1])
        bar.show(trials[1], "vae.decode")
        bar.finish(trials[1:])
        bar.show(trials[1], "vae.decode")
    return stream.getvalue()


def test_a_tier_test_shows_the_card_and_the_stage() -> None:
    shown = drawn_trials(terminal=True, enabled=True)
    assert "16GB default, LM 1.7B: vae.decode" in shown
    assert "2/2" in shown


@pytest.mark.parametrize(("terminal", "enabled"), [(False, True), (True, False)])
def test_a_tier_test_has_no_bar_elsewhere_or_when_switched_off(terminal: bool, enabled: bool) -> None:
    assert "GB" not in drawn_trials(terminal=terminal, enabled=enabled)
