"""Numbers as people read them, three significant digits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

ABSENT: Final = "—"
"""Stands for a figure that does not exist."""

_SECOND_UNITS: Final = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_BYTE_UNITS: Final = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))


def duration(seconds: float | None) -> str:
    """Seconds as ``8.22 s``, ``147 ms`` or ``703 µs``; ``—`` for ``None``."""
    if seconds is None:
        return ABSENT
    if not seconds:
        return "0 s"
    unit, name = _unit(seconds, _SECOND_UNITS)
    return f"{_significant(seconds / unit)} {name}"


def size(count: float | None) -> str:
    """Bytes as ``1.50 GiB``; ``—`` for ``None``."""
    if count is None:
        return ABSENT
    unit, name = _unit(count, _BYTE_UNITS)
    return f"{int(count):,} B" if unit == 1 else f"{_significant(count / unit)} {name}"


def number(value: float | None) -> str:
    """A count as ``1,079``, another number with three significant digits; ``—`` for ``None``."""
    if value is None:
        return ABSENT
    return f"{value:,}" if isinstance(value, int) else _significant(value)


def share(percent: float | None) -> str:
    """A percentage as ``45.2%``; ``—`` for ``None``."""
    # Rounding can leave a residual such as -0.0; adding zero takes the sign off.
    return ABSENT if percent is None else f"{round(percent, 1) + 0.0:.1f}%"


def shortened(quantity: str) -> str:
    """A quantity without the zeros that end its fraction: ``40.0 ms`` is ``40 ms``."""
    figures, space, unit = quantity.partition(" ")
    return (figures.rstrip("0").rstrip(".") if "." in figures else figures) + space + unit


def _unit(value: float, units: Sequence[tuple[float, str]]) -> tuple[float, str]:
    # What rounds up to one of a unit is written in it: 1.00 s, not 1,000 ms.
    return next((pair for pair in units if abs(value) >= 0.9995 * pair[0]), units[-1])


def _significant(value: float) -> str:
    magnitude = abs(value)
    return f"{value:,.{0 if magnitude >= 99.95 else 1 if magnitude >= 9.995 else 2}f}"
