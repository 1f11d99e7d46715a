"""The benchmark matrix as a table whose cells are shaded by how long they took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from acestep_otel.report.cells import CellResult
from acestep_otel.report.html.quantities import duration

_SHADES: Final = 6


@dataclass(frozen=True, slots=True)
class MatrixCell:
    """One time of the table; ``shade`` goes from 0, no time, to 5, the slowest of its column."""

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


def matrix_lines(results: Sequence[CellResult]) -> tuple[MatrixLine, ...]:
    """The table, in the order given: medians where a cell was run several times, nothing where it failed.

    Shades compare within a column, so those of the last one compare cells of any duration and batch size.
    """
    columns = zip(*map(_seconds, results), strict=True)
    shaded = [list(zip(column, _shades(column), strict=True)) for column in columns]
    return tuple(
        MatrixLine(
            configuration=(
                f"{result.cell.duration:g} s",
                str(result.cell.batch_size),
                "yes" if result.cell.thinking else "no",
                str(result.cell.inference_steps),
            ),
            cells=tuple(MatrixCell(duration(value), shade) for value, shade in cells),
            status=result.status,
            failed=result.failure is not None,
        )
        for result, cells in zip(results, zip(*shaded, strict=True), strict=True)
    )


def _seconds(result: CellResult) -> tuple[float | None, ...]:
    summary = result.summary
    if summary is None:
        return (None,) * 5
    audio = result.cell.duration * result.cell.batch_size
    return (*summary.median, summary.median.wall_time / audio)


def _shades(column: Sequence[float | None]) -> list[int | None]:
    # From zero, not from the quickest: a column of equal times should look equal, whatever its noise.
    highest = max((value for value in column if value is not None), default=0.0)
    scale = (_SHADES - 1) / highest if highest else 0.0
    return [None if value is None else round(value * scale) for value in column]
