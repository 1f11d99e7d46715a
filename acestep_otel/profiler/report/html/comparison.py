"""The page of ``compare``: the ratios of two result files, in a chart and a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from acestep_otel.profiler.benchmark.comparison import ComparedCell, Comparison, ResultFile
from acestep_otel.profiler.benchmark.matrix import COLUMNS
from acestep_otel.profiler.report.html.charts import Chart, Part, row_chart
from acestep_otel.profiler.report.html.figure import Table, written
from acestep_otel.profiler.report.html.quantities import ABSENT, duration, shortened
from acestep_otel.profiler.report.html.rendering import render_page, write_page

_FIGURES: Final = ("Wall", "LM", "DiT", "VAE")
"""Headings of the columns of a result file."""
_FARTHEST: Final = 3
"""Multiple of the longest bar up to which the threshold has a line."""


def render_comparison_page(comparison: Comparison, command: str | None = None) -> str:
    """The page as HTML.

    Args:
        comparison: of two result files.
        command: the command, to be copied.
    """
    return render_page(
        "comparison.html.j2",
        passed=not comparison.regressions,
        verdict=_verdict(comparison),
        stopped=comparison.stopped,
        files=(("A, the baseline", _file(comparison.baseline)), ("B", _file(comparison.candidate))),
        limits=(
            ("Highest ratio that passes", _ratio(comparison.threshold)),
            ("Differences taken as noise", f"{duration(comparison.noise_floor)}, or the runs' spread"),
        ),
        differences=_differences(comparison),
        chart=_chart(comparison),
        legend=(("process-peak", "passes"), ("process-over", "slower")),
        columns=_FIGURES,
        lines=[_line(compared, comparison) for compared in comparison.cells],
        only_in=(
            *(f"Only in A: {cell}" for cell in comparison.only_in_baseline),
            *(f"Only in B: {cell}" for cell in comparison.only_in_candidate),
        ),
        command=command,
    )


def write_comparison_page(path: Path, comparison: Comparison, command: str | None = None) -> None:
    """Write the page.

    Raises:
        OSError: it could not be written; the previous file is unchanged.
    """
    write_page(path, render_comparison_page(comparison, command))


def _verdict(comparison: Comparison) -> str:
    """The result in one sentence, over all cells that both files measured."""
    if comparison.regressions:
        count, cells = len(comparison.regressions), sum(map(bool, map(comparison.slower, comparison.cells)))
        found = "1 regression" if count == 1 else f"{count} regressions"
        return f"B does not pass: {found}; cells that are slower: {cells} of {len(comparison.cells)}."
    walls = [ratio for compared in comparison.cells if (ratio := compared.ratios["wall_time"]) is not None]
    if not walls:
        return "B passes, but no cell has a time in both files."
    least, most = min(walls), max(walls)
    span = _ratio(least) if least == most else f"{_ratio(least)} to {_ratio(most)}"
    return f"B passes: its wall times are {span} those of A."


def _file(file: ResultFile) -> str:
    return f"{file.name}: mode {file.mode}, {file.environment}"


def _ratio(value: float | None) -> str:
    return ABSENT if value is None else f"× {value:.2f}"


def _differences(comparison: Comparison) -> Table | None:
    rows = tuple(
        (name, written(before), written(after))
        for name, pairs in comparison.differences.items()
        for before, after in pairs
    )
    return Table(("Setting", "A", "B"), rows) if rows else None


def _chart(comparison: Comparison) -> Chart | None:
    """Wall time of B over that of A, a bar for each cell; ``None`` if no cell has both."""
    drawn = {compared: ratio for compared in comparison.cells if (ratio := compared.ratios["wall_time"]) is not None}
    if not drawn:
        return None
    # A threshold far beyond every bar would make the bars invisible.
    limit = (comparison.threshold, f"{_ratio(comparison.threshold)}: more does not pass")
    return row_chart(
        "Wall time of B over that of A: "
        + "; ".join(f"{compared.cell} {_shown(compared, 'wall_time', comparison)}" for compared in drawn),
        [(_short(compared), [_part(compared, ratio, comparison)]) for compared, ratio in drawn.items()],
        lambda value: shortened(f"{value:.2f}"),
        stacked=False,
        reference=limit if comparison.threshold <= _FARTHEST * max(drawn.values()) else None,
    )


@dataclass(frozen=True, slots=True)
class ComparedFigure:
    """One figure of a cell: its ratio, the times behind it, and whether it passes."""

    ratio: str
    times: str
    slower: bool


@dataclass(frozen=True, slots=True)
class ComparedLine:
    """One cell of the table."""

    cell: str
    figures: tuple[ComparedFigure, ...]
    verdict: str
    failed: bool


def _line(compared: ComparedCell, comparison: Comparison) -> ComparedLine:
    slower = comparison.slower(compared)
    figures = []
    for column in COLUMNS:
        before, after = (
            duration(None if figures is None else getattr(figures, column))
            for figures in (compared.baseline, compared.candidate)
        )
        ratio = _shown(compared, column, comparison)
        figures.append(ComparedFigure(ratio, f"{before} → {after}", column in slower))
    return ComparedLine(str(compared.cell), tuple(figures), compared.verdict(slower), bool(slower) or compared.broke)


def _short(compared: ComparedCell) -> str:
    cell = compared.cell
    thinking = ", LM" if cell.thinking else ""
    return f"{cell.duration:g} s × {cell.batch_size}{thinking}, {cell.inference_steps} st."


def _shown(compared: ComparedCell, column: str, comparison: Comparison) -> str:
    """A ratio, with enough digits to show that it does not pass."""
    if column in comparison.slower(compared):
        return compared.change(column, comparison.threshold).replace("x ", "× ", 1)
    return _ratio(compared.ratios[column])


def _part(compared: ComparedCell, ratio: float, comparison: Comparison) -> Part:
    shown = _shown(compared, "wall_time", comparison)
    style = "process-over" if "wall_time" in comparison.slower(compared) else "process-peak"
    before = None if compared.baseline is None else compared.baseline.wall_time
    after = None if compared.candidate is None else compared.candidate.wall_time
    title = f"{compared.cell}: {duration(before)} in A, {duration(after)} in B, {shown}"
    return Part(ratio, style, title, shown)
