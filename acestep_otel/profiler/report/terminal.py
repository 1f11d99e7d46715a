"""The breakdown as text, in the layout of the benchmark guide ("Time Costs Breakdown")."""

from __future__ import annotations

from typing import Final

from acestep_otel.profiler.report.breakdown import Breakdown
from acestep_otel.profiler.report.rows import Row, breakdown_rows

_TITLE_RULE: Final = "=" * 100
_RULE: Final = "  " + "─" * 61
_ABSENT: Final = "—"
_BRANCH: Final = "  ├─ "
_LAST_BRANCH: Final = "  └─ "


def render_breakdown(breakdown: Breakdown) -> str:
    """The table, without a final newline.

    Columns start at 2, 37 and 52; seconds have two decimals, percentages one. ``—`` stands for a figure that does
    not exist: a share of a count or of an average, guidance that was not calibrated, the average of no steps.
    """
    rows = list(breakdown_rows(breakdown))
    lines = [
        _line(row, is_last_child=row.is_child and not below.is_child)
        for row, below in zip(rows, [*rows[1:], rows[0]], strict=True)
    ]
    return "\n".join(
        [
            "TIME COSTS BREAKDOWN",
            _TITLE_RULE,
            f"  {'Component':<35}{'Time (s)':<15}% of Total",
            _RULE,
            *lines[:-1],
            _RULE,
            lines[-1],
        ]
    )


def _line(row: Row, *, is_last_child: bool) -> str:
    branch = (_LAST_BRANCH if is_last_child else _BRANCH) if row.is_child else ""
    return f"  {branch + row.label:<35}{_value(row):<14}{_share(row):>6}".rstrip()


def _value(row: Row) -> str:
    if row.value is None:
        return _ABSENT
    # Rounding can leave a residual such as -0.00; adding zero takes the sign off.
    return str(row.value) if row.component == "steps" else f"{round(row.value, 2) + 0.0:.2f}"


def _share(row: Row) -> str:
    return f"{_ABSENT:<4}" if row.percent is None else f"{round(row.percent, 1) + 0.0:.1f}%"
