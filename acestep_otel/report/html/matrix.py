"""The benchmark matrix as a table whose cells are shaded by how long they took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from acestep_otel.report.html.quantities import duration

_SHADES: Final = 6
_FIGURES: Final = ("wall", "lm", "dit", "vae")


@dataclass(frozen=True, slots=True)
class MatrixRow:
    """One configuration of a benchmark. Times are seconds, ``None`` when there is none, as after a failure.

    Attributes:
        duration: of each song.
        batch_size: songs made together.
        thinking: whether the language model writes audio codes.
        inference_steps: diffusion steps.
        wall: the whole call.
        lm: the language model's side.
        dit: the diffusion loop.
        vae: latents to audio.
        status: ``OK``, or what went wrong.
    """

    duration: float
    batch_size: int
    thinking: bool
    inference_steps: int
    wall: float | None
    lm: float | None
    dit: float | None
    vae: float | None
    status: str = "OK"


@dataclass(frozen=True, slots=True)
class MatrixCell:
    """One time of the table; ``shade`` counts from 0, the quickest of its column, to 5."""

    text: str
    shade: int | None


@dataclass(frozen=True, slots=True)
class MatrixLine:
    """One line of the table."""

    configuration: tuple[str, ...]
    cells: tuple[MatrixCell, ...]
    status: str
    failed: bool


MATRIX_COLUMNS: Final = ("Duration", "Batch", "Think", "Steps", "Wall", "LM", "DiT", "VAE", "Per second of audio")


def matrix_lines(rows: Sequence[MatrixRow]) -> tuple[MatrixLine, ...]:
    """The table, in the order given. Shades compare within a column, the last one across durations and batches."""
    columns = [[getattr(row, name) for row in rows] for name in _FIGURES]
    columns.append([_per_second(row) for row in rows])
    shaded = [list(zip(column, _shades(column), strict=True)) for column in columns]
    return tuple(
        MatrixLine(
            configuration=(
                f"{row.duration:g} s",
                str(row.batch_size),
                "yes" if row.thinking else "no",
                str(row.inference_steps),
            ),
            cells=tuple(MatrixCell(duration(value), shade) for value, shade in cells),
            status=row.status,
            failed=row.status != "OK",
        )
        for row, cells in zip(rows, zip(*shaded, strict=True), strict=True)
    )


def _per_second(row: MatrixRow) -> float | None:
    return None if row.wall is None else row.wall / (row.duration * row.batch_size)


def _shades(column: Sequence[float | None]) -> list[int | None]:
    values = [value for value in column if value is not None]
    lowest, highest = min(values, default=0.0), max(values, default=0.0)
    scale = (_SHADES - 1) / (highest - lowest) if highest > lowest else 0.0
    return [None if value is None else round((value - lowest) * scale) for value in column]
