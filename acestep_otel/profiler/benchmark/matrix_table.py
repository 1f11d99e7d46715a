"""The benchmark matrix as text, in the layout of the benchmark guide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from acestep.cards import models_of
from acestep_otel.profiler.benchmark.comparison import Comparison
from acestep_otel.profiler.benchmark.matrix import Cell, CellResult, Figures

_RULE: Final = "-" * 122
_ABSENT: Final = "—"
_FIGURES: Final = ("Wall(s)", "LM(s)", "DiT(s)", "VAE(s)")


def render_matrix(results: Sequence[CellResult]) -> str:
    """The table, without a final newline: medians where a cell was run several times, ``—`` where it failed.

    Columns start at 0, 11, 19, 27, 35, 46, 57, 68 and 79; seconds have two decimals. Where cells were run on several
    cards, the last column has the short name of the card, with the model if the models differ.
    """
    cards = [result.card for result in results if result.card is not None]
    if not cards:
        rows = (_configured(result.cell, _medians(result), 11) + result.status for result in results)
        return "\n".join([_header(_FIGURES, 11) + "Status", _RULE, *rows])
    width = 2 + max(len("Status"), *(len(result.status) for result in results))
    alike = len(models_of(cards)) == 1
    rows = (
        f"{_configured(result.cell, _medians(result), 11)}{result.status:<{width}}{_card(result, alike=alike)}".rstrip()
        for result in results
    )
    return "\n".join([f"{_header(_FIGURES, 11)}{'Status':<{width}}Card", _RULE, *rows])


def _card(result: CellResult, *, alike: bool) -> str:
    if result.card is None:
        return _ABSENT
    return result.card.label if alike else f"{result.card.label} ({result.card.model})"


def render_spread(results: Sequence[CellResult]) -> str:
    """Spread of the runs of each cell: the smallest, and the difference to the largest."""
    rows = (_configured(result.cell, _ranges(result), 16).rstrip() for result in results)
    return "\n".join(["Minimum + spread of the runs:", _header(_FIGURES, 16).rstrip(), _RULE, *rows])


def render_comparison(comparison: Comparison) -> str:
    """Ratios of two result files, B over A: above 1 is slower. ``—`` means that there is none."""
    lines = [
        f"A: {comparison.baseline.name} ({comparison.baseline.environment})",
        f"B: {comparison.candidate.name} ({comparison.candidate.environment})",
        *(
            f"differs: {name}: {_word(before)} in A, {_word(after)} in B"
            for name, pairs in comparison.differences.items()
            for before, after in pairs
        ),
        "",
        _header(("Wall B/A", "LM B/A", "DiT B/A", "VAE B/A"), 11) + "Status",
        _RULE,
    ]
    for compared in comparison.cells:
        ratios = (_ABSENT if ratio is None else f"{ratio:.2f}" for ratio in compared.ratios.values())
        lines.append(_configured(compared.cell, ratios, 11) + compared.verdict(comparison.slower(compared)))
    lines += [f"only in A: {cell}" for cell in comparison.only_in_baseline]
    lines += [f"only in B: {cell}" for cell in comparison.only_in_candidate]
    return "\n".join(lines)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else str(value)


def _header(columns: Sequence[str], width: int) -> str:
    return f"{'Duration':<11}{'Batch':<8}{'Think':<8}{'Steps':<8}" + "".join(f"{name:<{width}}" for name in columns)


def _configured(cell: Cell, values: Iterator[str], width: int) -> str:
    configuration = f"{cell.duration:<11g}{cell.batch_size:<8}{cell.thinking!s:<8}{cell.inference_steps:<8}"
    return configuration + "".join(f"{value:<{width}}" for value in values)


def _medians(result: CellResult) -> Iterator[str]:
    summary = result.summary
    return _absent() if summary is None else _seconds(summary.median)


def _ranges(result: CellResult) -> Iterator[str]:
    summary = result.summary
    if summary is None:
        return _absent()
    return map(" + ".join, zip(_seconds(summary.minimum), _seconds(summary.spread), strict=True))


def _seconds(figures: Figures) -> Iterator[str]:
    return (f"{seconds:.2f}" for seconds in figures)


def _absent() -> Iterator[str]:
    return iter([_ABSENT] * len(_FIGURES))
