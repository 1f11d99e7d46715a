"""The roofline of some work: its minimum duration and the ceiling that determines it.

Source: Williams, Waterman and Patterson 2009, "Roofline: An Insightful Visual Performance Model".

A pass takes at least as long as its operations at the device's peak, and as its bytes at the peak bandwidth: whichever
is longer is its ceiling. Passes follow one another, so their times add up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from acestep_otel.roofline.peaks import Peaks
from acestep_otel.roofline.work import Part, Work

Ceiling = Literal["compute", "memory"]
Bound = Literal["compute", "memory", "launch"]

LOW: Final = 0.5
"""Share of the roofline below which a stage can be limited by something other than its ceiling."""


@dataclass(frozen=True, slots=True)
class Roofline:
    """Work against time.

    Attributes:
        work: operations and bytes.
        seconds: duration.
        ideal: seconds needed at the device's peaks; ``None`` without peaks.
        ceiling: the peak that determines most of the ideal time; ``None`` without peaks.
    """

    work: Work
    seconds: float
    ideal: float | None
    ceiling: Ceiling | None

    @classmethod
    def of(cls, parts: Iterable[Part], seconds: float, peaks: Peaks | None) -> Roofline:
        """Add up passes that followed one another.

        Args:
            parts: the passes.
            seconds: their total duration, more than 0.
            peaks: of the device; if the peak of a precision in use is missing, there is no ideal time.
        """
        parts = list(parts)
        work = sum((part.work for part in parts), Work())
        if peaks is None or any(part.precision not in peaks.operations for part in parts):
            return cls(work, seconds, None, None)
        at = {"compute": 0.0, "memory": 0.0}
        for part in parts:
            compute = part.work.operations / peaks.operations[part.precision]
            memory = part.work.bytes / peaks.bandwidth
            at["compute" if compute >= memory else "memory"] += max(compute, memory)
        return cls(work, seconds, sum(at.values()), "compute" if at["compute"] >= at["memory"] else "memory")

    @property
    def operation_rate(self) -> float:
        """Operations per second."""
        return self.work.operations / self.seconds

    @property
    def byte_rate(self) -> float:
        """Bytes per second."""
        return self.work.bytes / self.seconds

    @property
    def share(self) -> float | None:
        """Ideal time over the duration; 1 is the roofline itself."""
        return None if self.ideal is None else self.ideal / self.seconds

    def bound(self, *, waits_for_host: bool) -> Bound | None:
        """The limit: ``launch`` if the device waits for the host and the share is below ``LOW``, else the ceiling."""
        if self.share is None:
            return None
        return "launch" if waits_for_host and self.share < LOW else self.ceiling
