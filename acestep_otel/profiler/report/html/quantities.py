"""Quantities as text, and the axis of a chart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Self

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
    # Rounding can leave a residual such as -0.0; adding zero removes the sign.
    return ABSENT if percent is None else f"{round(percent, 1) + 0.0:.1f}%"


def shortened(quantity: str) -> str:
    """A quantity without the zeros that end its fraction: ``40.0 ms`` is ``40 ms``."""
    figures, space, unit = quantity.partition(" ")
    return (figures.rstrip("0").rstrip(".") if "." in figures else figures) + space + unit


def _unit(value: float, units: Sequence[tuple[float, str]]) -> tuple[float, str]:
    # A value that rounds up to one of a unit is written in that unit: 1.00 s, not 1,000 ms.
    return next((pair for pair in units if abs(value) >= 0.9995 * pair[0]), units[-1])


def _significant(value: float) -> str:
    magnitude = abs(value)
    return f"{value:,.{0 if magnitude >= 99.95 else 1 if magnitude >= 9.995 else 2}f}"


_ROUND: Final = (1.0, 2.0, 2.5, 5.0, 10.0)
_INTERVALS: Final = 5


@dataclass(frozen=True, slots=True)
class Tick:
    """One mark of an axis.

    Attributes:
        position: drawing units.
        text: its label.
    """

    position: float
    text: str


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values to positions in a drawing.

    Attributes:
        start: position of zero, in drawing units.
        length: drawing units from zero to ``limit``; negative for an axis that goes up.
        limit: the largest value with a position.
        ticks: from zero on.
    """

    start: float
    length: float
    limit: float
    ticks: tuple[Tick, ...]

    @classmethod
    def covering(
        cls, largest: float, *, start: float, length: float, text: Callable[[float], str], unit: float = 1.0
    ) -> Self:
        """An axis that ends at the largest value.

        Args:
            largest: largest value to draw; without values the axis ends at one unit.
            start: position of zero.
            length: from zero to the largest value.
            text: formats the value of a tick.
            unit: ticks are round multiples of this (bytes: one GiB).
        """
        limit = largest if largest > 0 else unit
        step = _round_step(limit / unit / _INTERVALS) * unit
        values = [step * index for index in range(math.floor(limit / step + 1e-9) + 1)]
        ticks = tuple(Tick(round(start + length * value / limit, 2), shortened(text(value))) for value in values)
        return cls(start, length, limit, ticks)

    def at(self, value: float) -> float:
        """The position of a value, in drawing units; values beyond the ends are drawn at the ends."""
        return round(self.start + self.length * min(max(value / self.limit, 0.0), 1.0), 2)

    def extent(self, first: float, last: float) -> float:
        """The distance between two values, in drawing units."""
        return round(abs(self.at(last) - self.at(first)), 2)


def _round_step(wanted: float) -> float:
    """The smallest round number that is not below the given one."""
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(factor * power for factor in _ROUND if factor * power >= wanted * (1 - 1e-9))
