"""Progress bars on a terminal, nothing anywhere else."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from acestep.types import Progress

_REDRAWS_PER_SECOND: Final = 4
_MINIMUM_SECONDS_BETWEEN_UPDATES: Final = 0.1
"""A language model reports hundreds of tokens a second; drawing each would show up in the measurement."""


class ProgressBars:
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
        console = Console(stderr=True) if console is None else console
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            refresh_per_second=_REDRAWS_PER_SECOND,
            transient=True,
            disable=not (enabled and console.is_terminal),
        )
        self._label = label
        self._tasks: dict[str, TaskID] = {}
        self._last_update = 0.0

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, progress: Progress) -> None:
        """Show how far a stage is."""
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
