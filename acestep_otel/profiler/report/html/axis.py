"""A linear axis from zero, with ticks at round numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from acestep_otel.profiler.report.html.quantities import shortened

_ROUND: Final = (1.0, 2.0, 2.5, 5.0, 10.0)
_INTERVALS: Final = 5


@dataclass(frozen=True, slots=True)
class Tick:
    """One mark of an axis.

    Attributes:
        position: drawing units.
        text: what it says.
    """

    position: float
    text: str


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values to places in a drawing.

    Attributes:
        start: place of zero, in drawing units.
        length: drawing units from zero to ``limit``; negative for an axis that goes up.
        limit: the largest value that has a place.
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
            largest: of the values that will be drawn; an axis of nothing ends at one unit.
            start: place of zero.
            length: from zero to the largest value.
            text: writes a tick's value.
            unit: ticks are round multiples of this (bytes: one GiB).
        """
        limit = largest if largest > 0 else unit
        step = _round_step(limit / unit / _INTERVALS) * unit
        values = [step * index for index in range(math.floor(limit / step + 1e-9) + 1)]
        ticks = tuple(Tick(round(start + length * value / limit, 2), shortened(text(value))) for value in values)
        return cls(start, length, limit, ticks)

    def at(self, value: float) -> float:
        """The place of a value, in drawing units; values beyond the ends are drawn at the ends."""
        return round(self.start + self.length * min(max(value / self.limit, 0.0), 1.0), 2)

    def extent(self, first: float, last: float) -> float:
        """How long the way between two values is, in drawing units."""
        return round(abs(self.at(last) - self.at(first)), 2)


def _round_step(wanted: float) -> float:
    """The smallest round number that is no less than the one wanted."""
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(factor * power for factor in _ROUND if factor * power >= wanted * (1 - 1e-9))
