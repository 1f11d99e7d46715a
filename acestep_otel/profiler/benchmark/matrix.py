"""The matrix of mode ``benchmark``: axes, the tier's limits, cells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Final, Literal, Self

from acestep.gpu_config import GPUConfig
from acestep_otel.profiler.benchmark.cells import Cell
from acestep_otel.profiler.options import Options

DURATIONS: Final = (30.0, 60.0, 120.0, 240.0)
BATCH_SIZES: Final = (1, 2, 4)
THINKING: Final = (False, True)
INFERENCE_STEPS: Final = (8, 16)


@dataclass(frozen=True, slots=True)
class Clamp:
    """A value of an axis that the tier holds down.

    Attributes:
        axis: ``duration`` or ``batch_size``.
        thinking: the cells that it concerns: a language model in memory lowers the limits.
        requested: the value of the matrix.
        limit: the value that is run instead.
    """

    axis: Literal["duration", "batch_size"]
    thinking: bool
    requested: float
    limit: int


@dataclass(frozen=True, slots=True)
class Matrix:
    """Cells to run, in order, and what became of the others.

    Attributes:
        cells: each once, by duration, batch size, thinking and steps.
        clamps: every value that was held down.
    """

    cells: tuple[Cell, ...]
    clamps: tuple[Clamp, ...]

    @classmethod
    def of(cls, options: Options, config: GPUConfig) -> Self:
        """Lay out the matrix.

        An option that was given replaces its axis and is run as given, also beyond the tier's limits: who names a value
        wants to know what it does. Values of the default axes are clamped; cells that become equal are one cell.

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
        """What was held down, a line per axis and kind of cell."""
        groups: dict[tuple[str, bool, int], list[float]] = {}
        for clamp in self.clamps:
            groups.setdefault((clamp.axis, clamp.thinking, clamp.limit), []).append(clamp.requested)
        for (axis, thinking, limit), requested in groups.items():
            kind = "thinking" if thinking else "not thinking"
            values = ", ".join(f"{value:g}" for value in requested)
            yield f"clamped, {kind}: {axis.replace('_', ' ')} {values} -> {limit}"


def _asks_language_model(options: Options) -> bool:
    """Whether the user's own flags bring the language model into cells that do not think."""
    return options.use_cot_metas or options.use_cot_caption or options.use_cot_language


def cell_options(options: Options, cell: Cell) -> Options:
    """The options of one cell's request.

    A thinking cell leaves everything of the example open except its duration, so that both phases of the language model
    have something to write. A cell that does not think asks the language model only what the user's own flags ask.
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
