"""Progress bars, on a terminal only."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from acestep.cards import Card
from acestep.types import Progress
from acestep_otel.profiler.benchmark.matrix import Cell
from acestep_otel.profiler.tier_test.trials import Trial

_REDRAWS_PER_SECOND: Final = 4
_MINIMUM_SECONDS_BETWEEN_UPDATES: Final = 0.1
"""A language model reports hundreds of tokens a second; drawing each would affect the measurement."""

_WHOLE_BENCHMARK_SECONDS: Final = 86_400.0
"""Window of finished cells for the estimate of the remaining time: rich's 30 s are less than one cell."""


class _BarsWithLines(Bars):
    """Bars, and below them a line for each card that works."""

    lines: Mapping[str, str] = {}

    def get_renderables(self) -> Iterator[RenderableType]:
        """The bars, then the lines."""
        yield from super().get_renderables()
        for label, text in self.lines.items():
            yield Text(f"  {label}: {text}", no_wrap=True, overflow="ellipsis")


class _TerminalBars:
    """Bars on standard error while the block runs; none without a terminal."""

    def __init__(
        self,
        *columns: ProgressColumn,
        enabled: bool,
        console: Console | None,
    ) -> None:
        console = Console(stderr=True) if console is None else console
        self._lines: dict[str, str] = {}
        self._bars = _BarsWithLines(
            *columns,
            console=console,
            refresh_per_second=_REDRAWS_PER_SECOND,
            speed_estimate_period=_WHOLE_BENCHMARK_SECONDS,
            transient=True,
            disable=not (enabled and console.is_terminal),
        )
        self._bars.lines = self._lines

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show_card(self, card: Card, text: str | None) -> None:
        """Show what a card does; ``None`` removes its line."""
        if text is None:
            self._lines.pop(card.label, None)
        else:
            self._lines[card.label] = text


class ProgressBars(_TerminalBars):
    """A bar per stage on standard error; called by the engine (``acestep.types.ProgressCallback``).

    Used as a context manager, once per run.
    """

    def __init__(self, label: str, *, enabled: bool, console: Console | None = None) -> None:
        """Prepare the bars.

        Args:
            label: what is running, for example ``warm-up``.
            enabled: whether the user wants bars; without a terminal there are none either way.
            console: where they are drawn; standard error when not given.
        """
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            enabled=enabled,
            console=console,
        )
        self._label = label
        self._tasks: dict[str, TaskID] = {}
        self._last_update = 0.0

    def __call__(self, progress: Progress) -> None:
        """Show the progress of a stage."""
        if self._bars.disable:
            return
        now = time.monotonic()
        finished = progress.done == progress.total
        if not finished and progress.stage in self._tasks:
            if now - self._last_update < _MINIMUM_SECONDS_BETWEEN_UPDATES:
                return
        elif progress.stage not in self._tasks:
            self._tasks[progress.stage] = self._bars.add_task(f"{self._label} {progress.stage}", total=progress.total)
        self._last_update = now
        self._bars.update(self._tasks[progress.stage], completed=progress.done, total=progress.total)


@contextmanager
def loading(what: str, *, enabled: bool, console: Console | None = None) -> Iterator[None]:
    """Show on a terminal that models are being loaded, with the elapsed time.

    Args:
        what: what is loaded.
        enabled: whether the user wants progress shown.
        console: where it is drawn; standard error when not given.
    """
    bars = Bars(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console or Console(stderr=True),
        transient=True,
        disable=not (enabled and (console or Console(stderr=True)).is_terminal),
    )
    with bars:
        bars.add_task(f"loading {what}", total=None)
        yield


class CellBar(_TerminalBars):
    """One bar over the cells of a benchmark, with the remaining time, on standard error.

    Used as a context manager, once per benchmark. Cells count by the seconds of audio they make, or the time left would
    be that of the short cells, which come first.
    """

    def __init__(self, cells: Sequence[Cell], *, enabled: bool, console: Console | None = None) -> None:
        """Prepare the bar.

        Args:
            cells: all that will be run.
            enabled: whether the user wants a bar; without a terminal there is none either way.
            console: where it is drawn; standard error when not given.
        """
        super().__init__(
            TextColumn("cell {task.fields[number]}/{task.fields[cells]}: {task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            enabled=enabled,
            console=console,
        )
        self._task = self._bars.add_task("", total=sum(map(_weight, cells)), cells=len(cells), number=0, visible=False)
        self._started = 0

    def start(self, cell: Cell, card: Card | None = None) -> None:
        """Show the cell that runs now; with several cards, on a line of its card."""
        self._started += 1
        self._bars.update(self._task, number=self._started, visible=True)
        if card is None:
            self._bars.update(self._task, description=str(cell))
        else:
            self.show_card(card, str(cell))

    def finish(self, cell: Cell) -> None:
        """Count a cell as done."""
        self._bars.update(self._task, advance=_weight(cell))


class TrialBar(_TerminalBars):
    """One bar over the rows of a tier test, with the stage that the child process is in, on standard error.

    Used as a context manager, once per tier test.
    """

    def __init__(self, trials: Sequence[Trial], *, enabled: bool, console: Console | None = None) -> None:
        """Prepare the bar.

        Args:
            trials: all that may be tried.
            enabled: whether the user wants a bar; without a terminal there is none either way.
            console: where it is drawn; standard error when not given.
        """
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            enabled=enabled,
            console=console,
        )
        self._task = self._bars.add_task("starting", total=len(trials))

    def show(self, trial: Trial, stage: str, card: Card | None = None) -> None:
        """Show the trial that runs now; with several cards, on a line of its card."""
        if card is None:
            self._bars.update(self._task, description=f"{trial}: {stage}")
        else:
            self.show_card(card, f"{trial}: {stage}")

    def finish(self, trials: Sequence[Trial]) -> None:
        """Count rows as done."""
        self._bars.update(self._task, description=str(trials[-1]), advance=len(trials))


def _weight(cell: Cell) -> float:
    return cell.duration * cell.batch_size
