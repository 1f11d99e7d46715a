"""The benchmark matrix as a table whose cells are shaded by duration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from acestep_otel.profiler.benchmark.matrix import CellResult
from acestep_otel.profiler.report.html.figure import Table, preparation_facts
from acestep_otel.profiler.report.html.quantities import duration
from acestep_otel.profiler.report.spans import Preparation

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
    card: str | None


@dataclass(frozen=True, slots=True)
class MatrixSection:
    """The benchmark of a page.

    Attributes:
        models: names of the models that ran, and the language model's backend.
        setting: device, type and origin of the weights.
        preparation: durations of loading and warm-ups, as text.
        columns: headings of the table, except the status.
        lines: the table.
        ranges: spread of the runs of each cell; ``None`` if each ran once.
        has_cards: whether there is a column of cards.
    """

    models: tuple[str, ...]
    setting: tuple[str, ...]
    preparation: tuple[str, ...]
    columns: tuple[str, ...]
    lines: tuple[MatrixLine, ...]
    ranges: Table | None
    has_cards: bool


_FIGURES: Final = ("Wall", "LM", "DiT", "VAE")


def matrix_section(results: Sequence[CellResult], preparation: Preparation | None = None) -> MatrixSection | None:
    """The section, or ``None`` when no cell was run."""
    if not results:
        return None
    ran = [settings for result in results for settings in _effective_settings(result)]
    return MatrixSection(
        models=_distinct(name for settings in ran for name in _models(settings)),
        setting=_distinct(settings[name] for settings in ran for name in ("device", "dtype", "weights")),
        preparation=preparation_facts(preparation),
        columns=("Duration", "Batch", "Think", "Steps", *_FIGURES, "Per second of audio"),
        has_cards=any(result.card is not None for result in results),
        lines=_lines(results),
        ranges=_ranges(results) if any(len(result.runs) > 1 for result in results) else None,
    )


def _effective_settings(result: CellResult) -> Iterator[dict[str, Any]]:
    for entry in result.entries:
        if entry["effective_settings"] is not None:
            yield entry["effective_settings"]


def _models(settings: dict[str, Any]) -> Iterator[str]:
    yield settings["dit_model"]
    if settings["lm_model"] is not None:
        yield f"{settings['lm_model']} ({settings['lm_backend']})"


def _distinct(words: Iterator[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))


def _ranges(results: Sequence[CellResult]) -> Table:
    rows = []
    for result in results:
        summary = result.summary
        if summary is not None:
            pairs = zip(summary.minimum, summary.spread, strict=True)
            rows.append((str(result.cell), *(f"{duration(least)} + {duration(spread)}" for least, spread in pairs)))
    return Table(("Cell", *_FIGURES), tuple(rows))


def _lines(results: Sequence[CellResult]) -> tuple[MatrixLine, ...]:
    """The table, in the order given: medians where a cell was run several times, nothing where it failed.

    Shades compare within a column, so those of the last one compare cells of any duration and batch size. They never
    compare cards of two models.
    """
    models = [None if result.card is None else result.card.model for result in results]
    columns = zip(*map(_seconds, results), strict=True)
    shaded = [list(zip(column, _shades(column, models), strict=True)) for column in columns]
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
            card=None if result.card is None else str(result.card),
        )
        for result, cells in zip(results, zip(*shaded, strict=True), strict=True)
    )


def _seconds(result: CellResult) -> tuple[float | None, ...]:
    summary = result.summary
    if summary is None:
        return (None,) * 5
    audio = result.cell.duration * result.cell.batch_size
    return (*summary.median, summary.median.wall_time / audio)


def _shades(column: Sequence[float | None], models: Sequence[str | None]) -> list[int | None]:
    # From zero, not from the fastest: a column of equal times should look equal, whatever its noise.
    highest: dict[str | None, float] = {}
    for value, model in zip(column, models, strict=True):
        highest[model] = max(highest.get(model, 0.0), value or 0.0)
    scales = {model: (_SHADES - 1) / value if value else 0.0 for model, value in highest.items()}
    return [
        None if value is None else round(value * scales[model]) for value, model in zip(column, models, strict=True)
    ]
