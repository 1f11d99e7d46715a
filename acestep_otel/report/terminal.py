"""The breakdown as text, in the layout of the benchmark guide ("Time Costs Breakdown")."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from acestep_otel.report.breakdown import Breakdown

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
    return "\n".join(
        [
            "TIME COSTS BREAKDOWN",
            _TITLE_RULE,
            f"  {'Component':<35}{'Time (s)':<15}% of Total",
            _RULE,
            *_rows(breakdown),
            _RULE,
            _timed("Wall Time (total)", breakdown.wall, breakdown),
        ]
    )


def _rows(breakdown: Breakdown) -> Iterator[str]:
    yield _timed("LLM Planning (total)", breakdown.planner, breakdown)
    yield _timed(_BRANCH + "Token generation", breakdown.token_generation, breakdown)
    yield _timed(_BRANCH + "Constrained decoding", breakdown.constrained_decoding, breakdown)
    yield _timed(_LAST_BRANCH + "CFG overhead", breakdown.guidance, breakdown)
    yield _timed("DiT Diffusion (total)", breakdown.diffusion, breakdown)
    average = breakdown.step_average
    yield _row(_BRANCH + "Per-step average", _ABSENT if average is None else f"{average:.2f}")
    yield _row(_LAST_BRANCH + "Steps", str(breakdown.steps))
    yield _timed("VAE Decode", breakdown.vae_decode, breakdown)
    yield _timed("Audio Save", breakdown.audio_save, breakdown)
    yield _timed("Other / Overhead", breakdown.other, breakdown)


def _timed(component: str, seconds: float | None, breakdown: Breakdown) -> str:
    if seconds is None:
        return _row(component, _ABSENT)
    # Rounding can leave a residual such as -0.00; adding zero takes the sign off.
    return _row(component, f"{round(seconds, 2) + 0.0:.2f}", f"{round(breakdown.share(seconds), 1) + 0.0:.1f}%")


def _row(component: str, value: str, share: str = f"{_ABSENT:<4}") -> str:
    return f"  {component:<35}{value:<14}{share:>6}".rstrip()
