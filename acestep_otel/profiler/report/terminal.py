"""Tables of one run as text: the time breakdown in the layout of the benchmark guide, and ``--llm-debug``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from acestep_otel.profiler.report.breakdown import Breakdown, Row, breakdown_rows
from acestep_otel.profiler.report.stage_work import RunWork
from acestep_otel.profiler.report.statistics import MemoryPeak, TokenStatistics
from acestep_otel.profiler.report.work_table import roofline_cell

_TITLE_RULE: Final = "=" * 100
_RULE: Final = "  " + "─" * 61
_ABSENT: Final = "—"
_BRANCH: Final = "  ├─ "
_LAST_BRANCH: Final = "  └─ "


def render_breakdown(breakdown: Breakdown, work: RunWork | None = None) -> str:
    """The table, without a final newline; with ``work`` it has one more column, at 66.

    Columns start at 2, 37 and 52; seconds have two decimals, percentages one. ``—`` means that a value does
    not exist: a share of a count or of an average, guidance that was not calibrated, the average of no steps.
    """
    rows = list(breakdown_rows(breakdown))
    lines = [
        _line(
            row,
            is_last_child=row.is_child and not below.is_child,
            last="" if work is None else roofline_cell(work, row),
        )
        for row, below in zip(rows, [*rows[1:], rows[0]], strict=True)
    ]
    return "\n".join(
        [
            "TIME COSTS BREAKDOWN",
            _TITLE_RULE,
            f"  {'Component':<35}{'Time (s)':<15}% of Total" + ("" if work is None else "    Roofline"),
            _RULE,
            *lines[:-1],
            _RULE,
            lines[-1],
        ]
    )


def _line(row: Row, *, is_last_child: bool, last: str) -> str:
    branch = (_LAST_BRANCH if is_last_child else _BRANCH) if row.is_child else ""
    return f"  {branch + row.label:<35}{_value(row):<14}{_share(row):>6}{last:>19}".rstrip()


def _value(row: Row) -> str:
    if row.value is None:
        return _ABSENT
    # Rounding can leave a residual such as -0.00; adding zero removes the sign.
    return str(row.value) if row.component == "steps" else f"{round(row.value, 2) + 0.0:.2f}"


def _share(row: Row) -> str:
    return f"{_ABSENT:<4}" if row.percent is None else f"{round(row.percent, 1) + 0.0:.1f}%"


def render_peaks(peaks: Mapping[str, MemoryPeak]) -> str:
    """The highest peak of each device, a line each, without a final newline."""
    lines = ["PEAK VRAM BY CARD", _TITLE_RULE, f"  {'Card':<12}{'Reserved':<14}{'Allocated':<14}Stage", _RULE]
    for device, peak in peaks.items():
        sizes = "".join(f"{f'{value / 2**30:.2f} GiB':<14}" for value in (peak.reserved, peak.allocated))
        lines.append(f"  {device:<12}{sizes}{peak.stage}")
    return "\n".join(lines)


_LABEL_WIDTH: Final = 35
_COLUMN_WIDTH: Final = 14


def render_token_statistics(phases: Sequence[TokenStatistics]) -> str:
    """The table, one column per phase, without a final newline; ``—`` means that a value does not exist."""
    title = f"LLM DEBUG\n{_TITLE_RULE}"
    if not phases:
        return f"{title}\n  The language model was not used."
    rule = "  " + "─" * (_LABEL_WIDTH + _COLUMN_WIDTH * len(phases))
    return "\n".join([title, _row("Phase", [phase.phase for phase in phases]), rule, *_rows(phases), rule])


def _rows(phases: Sequence[TokenStatistics]) -> Iterator[str]:
    def row(label: str, figure: Callable[[TokenStatistics], str]) -> str:
        return _row(label, [figure(phase) for phase in phases])

    yield row("Duration (s)", lambda phase: _number(phase.duration, 2))
    yield row("Prompt tokens", lambda phase: _count(phase.prompt_tokens))
    yield row("  └─ Reused", lambda phase: _count(phase.reused_tokens))
    yield row("Output tokens", lambda phase: _count(phase.output_tokens))
    yield row("  ├─ Sampled", lambda phase: _count(phase.sampled_tokens))
    yield row("  └─ Forced", lambda phase: _count(phase.forced_tokens))
    yield row("Forced share", lambda phase: _number(_scaled(phase.forced_share, 100), 1, "%"))
    yield row("Unconditional tokens", lambda phase: _count(phase.unconditional_tokens))
    yield row("Forward passes", lambda phase: _count(phase.forwards))
    yield row("Time to first token (ms)", lambda phase: _milliseconds(phase.time_to_first_token))
    yield row("Tokens/sec", lambda phase: _number(phase.output_tokens_per_second, 1))
    yield row("  ├─ Prefill", lambda phase: _number(phase.prefill_tokens_per_second, 1))
    yield row("  └─ Decode", lambda phase: _number(phase.tokens_per_second, 1))
    yield row("Gap between passes, p50 (ms)", lambda phase: _milliseconds(phase.token_gap_p50))
    yield row("Gap between passes, p95 (ms)", lambda phase: _milliseconds(phase.token_gap_p95))
    yield row("Gap between passes, max (ms)", lambda phase: _milliseconds(phase.token_gap_max))
    yield row("  └─ ended in pass", lambda phase: _count(phase.token_gap_max_index))


def _row(label: str, figures: Sequence[str]) -> str:
    return f"  {label:<{_LABEL_WIDTH}}" + "".join(f"{figure:>{_COLUMN_WIDTH}}" for figure in figures)


def _count(count: int | None) -> str:
    return _ABSENT if count is None else str(count)


def _number(value: float | None, decimals: int, unit: str = "") -> str:
    return _ABSENT if value is None else f"{value:.{decimals}f}{unit}"


def _milliseconds(seconds: float | None) -> str:
    return _number(_scaled(seconds, 1e3), 2)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
