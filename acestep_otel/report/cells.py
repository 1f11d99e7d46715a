"""Cells of a benchmark: what was run, how often, and the figures that the runs come down to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import median
from typing import Any, Final, Self

from acestep_otel.flags import message_of
from acestep_otel.report.breakdown import Breakdown


@dataclass(frozen=True, slots=True)
class Cell:
    """One configuration of a benchmark.

    Attributes:
        duration: seconds of each song.
        batch_size: songs made together.
        thinking: whether the language model reasons and writes audio codes.
        inference_steps: diffusion steps.
    """

    duration: float
    batch_size: int
    thinking: bool
    inference_steps: int

    def __str__(self) -> str:
        thinking = "thinking" if self.thinking else "not thinking"
        return f"{self.duration:g} s x {self.batch_size}, {thinking}, {self.inference_steps} steps"


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds of one run, or of several taken together; the rows of the breakdown that a benchmark compares.

    Attributes:
        wall_time: the whole call.
        lm_time: the language model's side.
        dit_time: the diffusion loop.
        vae_time: latents to audio.
    """

    wall_time: float
    lm_time: float
    dit_time: float
    vae_time: float

    def __iter__(self) -> Iterator[float]:
        """The figures, in the order of ``COLUMNS``."""
        return (getattr(self, column) for column in COLUMNS)

    @classmethod
    def of(cls, breakdown: Breakdown) -> Self:
        """The figures of one run."""
        return cls(
            wall_time=breakdown.wall,
            lm_time=breakdown.planner,
            dit_time=breakdown.diffusion,
            vae_time=breakdown.vae_decode,
        )


COLUMNS: Final = tuple(field.name for field in fields(Figures))


@dataclass(frozen=True, slots=True)
class Summary:
    """What several runs of one cell come down to, column by column.

    Attributes:
        median: the middle one; of an even number, half-way between the two in the middle.
        minimum: the smallest.
        spread: the largest less the smallest.
    """

    median: Figures
    minimum: Figures
    spread: Figures

    @classmethod
    def of(cls, runs: Sequence[Figures]) -> Self:
        """Summarise one run or more.

        Raises:
            ValueError: there is none.
        """
        if not runs:
            raise ValueError("no run to summarise")
        columns = list(zip(*runs, strict=True))
        return cls(
            median=Figures(*map(median, columns)),
            minimum=Figures(*map(min, columns)),
            spread=Figures(*(max(column) - min(column) for column in columns)),
        )


@dataclass(frozen=True, slots=True)
class Failure:
    """What ended a cell. Holds no exception, whose traceback would keep tensors alive.

    Attributes:
        type: class name of the exception.
        message: its text.
        stage: stage of the engine, when the exception tells.
    """

    type: str
    message: str
    stage: str | None

    @classmethod
    def of(cls, error: BaseException) -> Self:
        """Take down an exception."""
        return cls(type(error).__name__, message_of(error), getattr(error, "stage", None))


@dataclass(frozen=True, slots=True)
class CellResult:
    """One row.

    Attributes:
        cell: what was asked for.
        runs: figures of every run that ended well.
        failure: what ended the cell, or ``None``.
        entries: every run as the result file has it, the failed one included.
    """

    cell: Cell
    runs: tuple[Figures, ...]
    failure: Failure | None
    entries: tuple[dict[str, Any], ...]

    @property
    def summary(self) -> Summary | None:
        """The runs taken together; ``None`` for a cell that failed."""
        return None if self.failure is not None else Summary.of(self.runs)

    @property
    def status(self) -> str:
        """``OK``, or the class name of the error."""
        return "OK" if self.failure is None else self.failure.type

    def to_json(self) -> dict[str, Any]:
        """The entry of ``results``; the columns are medians, and null for a cell that failed."""
        summary = self.summary
        figures: dict[str, float | None] = dict.fromkeys(COLUMNS) if summary is None else asdict(summary.median)
        return {
            "config": asdict(self.cell),
            "status": "ok" if self.failure is None else "error",
            "error": None if self.failure is None else asdict(self.failure),
            **figures,
            "minimum": None if summary is None else asdict(summary.minimum),
            "spread": None if summary is None else asdict(summary.spread),
            "runs": list(self.entries),
        }
