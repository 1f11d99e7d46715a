"""Progress bars appear on a terminal only, and finished stages show as finished."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from rich.console import Console

from acestep.types import Progress
from acestep_otel.profiler.benchmark.matrix import Cell
from acestep_otel.profiler.run.progress import CellBar, ProgressBars, TrialBar, loading
from tests.profiler.tier_test.tier_rows import trial

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def capable_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever terminal the tests were started in: on one that can't move its cursor there are no bars."""
    monkeypatch.setenv("TERM", "xterm-256color")


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


def test_there_are_no_bars_on_a_terminal_that_cannot_move_its_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert "dit" not in drawn(terminal=True, enabled=True)


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


def drawn_loading(*, terminal: bool, enabled: bool) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=80, color_system=None)
    with loading("models", enabled=enabled, console=console):
        pass
    return stream.getvalue()


def test_loading_shows_what_is_loaded_and_for_how_long_and_is_wiped_out() -> None:
    shown = drawn_loading(terminal=True, enabled=True)
    assert "loading models 0:00:00" in shown
    # The line is erased at the end, so that the table stands alone.
    assert shown.rstrip("\n").endswith("\x1b[2K")


@pytest.mark.parametrize(("terminal", "enabled"), [(False, True), (True, False)])
def test_loading_shows_nothing_elsewhere_or_when_switched_off(terminal: bool, enabled: bool) -> None:
    assert "loading" not in drawn_loading(terminal=terminal, enabled=enabled)


def test_loading_that_fails_leaves_the_error_alone() -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    with pytest.raises(ValueError, match="no weights"), loading("models", enabled=True, console=console):
        raise ValueError("no weights")


@pytest.mark.parametrize("more", [(), ("--no-progress",)])
def test_a_run_on_a_terminal_shows_loading_warm_up_and_run(tmp_path: Path, more: tuple[str, ...]) -> None:
    """A whole process whose standard error is a terminal."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "acestep_otel.profiler", "--tiny", "--duration", "10", "--inference-steps", "1"]
    run = subprocess.Popen(
        [*command, *more], cwd=tmp_path, stdout=subprocess.PIPE, stderr=theirs,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    # A terminal whose other end was closed is read to its end by an error.
    with suppress(OSError):
        while piece := os.read(ours, 65_536):
            shown += piece
    os.close(ours)
    table, _ = run.communicate(timeout=60)
    assert run.returncode == 0, shown
    assert b"Wall Time (total)" in table
    for words in (b"loading models", b"warm-up dit", b"profile dit"):
        assert (words in shown) == (not more), shown
