"""The roofline as text: the column that ``--roofline`` adds to the breakdown, and the table below it."""

from __future__ import annotations

from typing import Final

from acestep_otel.profiler.report.breakdown import Row
from acestep_otel.profiler.report.stage_work import RunWork, StageWork

_ABSENT: Final = "—"
_TITLE_RULE: Final = "=" * 100
_STAGE: Final = 18
_COLUMN: Final = 11
_COLUMNS: Final = ("Time (s)", "TFLOP", "GB", "FLOP/B", "TFLOP/s", "TB/s", "Share")


def roofline_cell(work: RunWork, row: Row) -> str:
    """The column's text for a row of the breakdown, such as ``41% compute``; empty without work."""
    found = work.row(row.component)
    if found is None:
        return ""
    return f"{_share(found)} {found.bound}" if found.bound else _ABSENT


def render_work(work: RunWork) -> str:
    """The table, one row per stage, without a final newline."""
    if not work.stages:
        return f"ROOFLINE\n{_TITLE_RULE}\n  No work is known of the stages of this run."
    rule = "  " + "─" * (_STAGE + _COLUMN * len(_COLUMNS) + 10)
    header = f"  {'Stage':<{_STAGE}}" + "".join(f"{column:>{_COLUMN}}" for column in _COLUMNS) + "  Bound"
    return "\n".join(
        [
            "ROOFLINE",
            _TITLE_RULE,
            header,
            rule,
            *(_line(stage) for stage in work.stages.values()),
            rule,
            f"  {ceilings(work)}",
        ]
    )


def ceilings(work: RunWork) -> str:
    """The peaks that the shares refer to, in one sentence."""
    if work.bandwidth is None:
        return "The peaks of this device are unknown: acestep-otel doctor --measure-device measures them."
    rate = "" if work.rate is None else f"{_figure(work.rate / 1e12)} TFLOP/s and "
    return f"Peaks: {rate}{_figure(work.bandwidth / 1e12)} TB/s ({work.source})"


def _line(stage: StageWork) -> str:
    figures = (
        f"{stage.seconds:.3f}",
        _figure(stage.operations / 1e12),
        _figure(stage.bytes / 1e9),
        _figure(stage.intensity),
        _figure(stage.operation_rate / 1e12),
        _figure(stage.byte_rate / 1e12),
        _share(stage),
    )
    name = f"{stage.stage} x {stage.spans}" if stage.spans > 1 else stage.stage
    return f"  {name:<{_STAGE}}" + "".join(f"{figure:>{_COLUMN}}" for figure in figures) + f"  {stage.bound or _ABSENT}"


def _share(stage: StageWork) -> str:
    if stage.share is None:
        return _ABSENT
    percent = 100 * stage.share
    return f"{percent:.0f}%" if percent >= 9.5 else f"{percent:.2g}%"


def _figure(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value >= 1000:
        return f"{value:.0f}"
    return f"{value:#.3g}".rstrip(".") if value >= 1e-3 else f"{value:.1e}"
