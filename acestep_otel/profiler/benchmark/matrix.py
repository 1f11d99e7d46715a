"""The matrix of mode ``benchmark``: its cells after the tier's limits, and the results of each cell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from statistics import median
from typing import Any, Final, Literal, Self

from acestep.cards import Card
from acestep.gpu_config import GPUConfig
from acestep_otel.profiler.children.cards import card_json
from acestep_otel.profiler.flags import message_of
from acestep_otel.profiler.options import Options
from acestep_otel.profiler.report.breakdown import Breakdown


@dataclass(frozen=True, slots=True)
class Cell:
    """One configuration of a benchmark.

    Attributes:
        duration: seconds of each song.
        batch_size: songs per request.
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
    """Seconds of one run, or a summary of several: the rows of the breakdown that a benchmark compares.

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
    """Summary of several runs of one cell, column by column.

    Attributes:
        median: of an even number of runs, the mean of the two in the middle.
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
    """The error of a cell. The exception is not kept, because its traceback would keep tensors alive.

    Attributes:
        type: class name of the exception.
        message: its text.
        stage: stage of the engine, if the exception has one.
    """

    type: str
    message: str
    stage: str | None

    @classmethod
    def of(cls, error: BaseException) -> Self:
        """Record an exception."""
        return cls(type(error).__name__, message_of(error), getattr(error, "stage", None))


@dataclass(frozen=True, slots=True)
class CellResult:
    """One row.

    Attributes:
        cell: the requested configuration.
        runs: figures of every successful run.
        failure: what ended the cell, or ``None``.
        entries: every run as the result file has it, the failed one included.
        card: card of all its runs; ``None`` without ``--gpus``.
    """

    cell: Cell
    runs: tuple[Figures, ...]
    failure: Failure | None
    entries: tuple[dict[str, Any], ...]
    card: Card | None = None

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """Read what ``asdict`` made."""
        return cls(
            cell=Cell(**found["cell"]),
            runs=tuple(Figures(**figures) for figures in found["runs"]),
            failure=None if found["failure"] is None else Failure(**found["failure"]),
            entries=tuple(found["entries"]),
            card=None if found["card"] is None else Card(**found["card"]),
        )

    @property
    def summary(self) -> Summary | None:
        """Summary of the runs; ``None`` for a failed cell."""
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
            "card": card_json(self.card),
            **figures,
            "minimum": None if summary is None else asdict(summary.minimum),
            "spread": None if summary is None else asdict(summary.spread),
            "runs": list(self.entries),
        }


def longest_first(cells: Iterable[Cell]) -> list[Cell]:
    """Cells in the order of assignment to several cards: the longest first, so that no long one starts last.

    Cells with thinking come after all others, because a process that has loaded the language model has less memory.
    """
    return sorted(
        cells,
        key=lambda cell: (cell.thinking, -cell.duration * cell.batch_size * cell.inference_steps, -cell.duration),
    )


DURATIONS: Final = (30.0, 60.0, 120.0, 240.0)
BATCH_SIZES: Final = (1, 2, 4)
THINKING: Final = (False, True)
INFERENCE_STEPS: Final = (8, 16)


@dataclass(frozen=True, slots=True)
class Clamp:
    """A value of an axis that the tier limits.

    Attributes:
        axis: ``duration`` or ``batch_size``.
        thinking: which cells it concerns: a language model in memory lowers the limits.
        requested: the value of the matrix.
        limit: the value that is run instead.
    """

    axis: Literal["duration", "batch_size"]
    thinking: bool
    requested: float
    limit: int


@dataclass(frozen=True, slots=True)
class Matrix:
    """Cells to run, in order, and the values that were clamped.

    Attributes:
        cells: each once, by duration, batch size, thinking and steps.
        clamps: every value that was clamped.
    """

    cells: tuple[Cell, ...]
    clamps: tuple[Clamp, ...]

    @classmethod
    def of(cls, options: Options, config: GPUConfig) -> Self:
        """Lay out the matrix.

        An option that was given replaces its axis and is run as given, also beyond the tier's limits: an explicit
        value is never changed. Values of the default axes are clamped; cells that become equal are one cell.

        Args:
            options: of the command line.
            config: the tier whose limits hold.
        """
        durations = DURATIONS if options.duration is None else (options.duration,)
        batch_sizes = BATCH_SIZES if options.batch_size is None else (options.batch_size,)
        thinking = (True,) if options.thinking else THINKING
        steps = INFERENCE_STEPS if options.inference_steps is None else (options.inference_steps,)
        clamps: list[Clamp] = []
        limits = {thinks: config.limits(with_lm=thinks or _asks_language_model(options)) for thinks in thinking}
        for thinks, limit in limits.items():
            if options.duration is None:
                clamps += [Clamp("duration", thinks, value, limit.duration) for value in durations]
            if options.batch_size is None:
                clamps += [Clamp("batch_size", thinks, value, limit.batch_size) for value in batch_sizes]
        clamps = [clamp for clamp in clamps if clamp.requested > clamp.limit]
        held = {(clamp.axis, clamp.thinking, clamp.requested): clamp.limit for clamp in clamps}
        cells = (
            Cell(
                duration=float(held.get(("duration", thinks, duration), duration)),
                batch_size=held.get(("batch_size", thinks, batch_size), batch_size),
                thinking=thinks,
                inference_steps=count,
            )
            for duration, batch_size, thinks, count in product(durations, batch_sizes, thinking, steps)
        )
        return cls(tuple(dict.fromkeys(cells)), tuple(clamps))

    def clamp_lines(self) -> Iterator[str]:
        """The clamped values, one line per axis and kind of cell."""
        groups: dict[tuple[str, bool, int], list[float]] = {}
        for clamp in self.clamps:
            groups.setdefault((clamp.axis, clamp.thinking, clamp.limit), []).append(clamp.requested)
        for (axis, thinking, limit), requested in groups.items():
            kind = "thinking" if thinking else "not thinking"
            values = ", ".join(f"{value:g}" for value in requested)
            yield f"clamped, {kind}: {axis.replace('_', ' ')} {values} -> {limit}"


def _asks_language_model(options: Options) -> bool:
    """Whether the user's flags require the language model in cells without thinking."""
    return options.use_cot_metas or options.use_cot_caption or options.use_cot_language


def cell_options(options: Options, cell: Cell) -> Options:
    """The options of one cell's request.

    A cell with thinking leaves all values of the example open except its duration, so that both phases of the language
    model run. A cell without thinking uses the language model only as far as the user's flags require.
    """
    return replace(
        options,
        duration=cell.duration,
        batch_size=cell.batch_size,
        thinking=cell.thinking,
        inference_steps=cell.inference_steps,
        use_cot_metas=options.use_cot_metas or cell.thinking,
        use_cot_caption=options.use_cot_caption or cell.thinking,
        use_cot_language=options.use_cot_language or cell.thinking,
    )
