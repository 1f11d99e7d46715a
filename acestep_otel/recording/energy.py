"""Energy of requests and stages, from the counter of a card's driver (NVML, joules since the driver was loaded).

The counter is read by a thread of its own, a few times a second while a request runs: a reading on the request's
thread would delay the request, and would correspond to the progress of the host and not of the device. When the
request is over, the energy at the times of its spans is interpolated between the readings.

The driver updates the counter at an undocumented period, 20 to 100 ms, which the thread measures first. ``resolution``
is this period plus the time between two readings: an interval is uncertain by at most that much time. An interval
shorter than ``FEWEST_RESOLUTIONS`` of it has no energy.

The counter covers the whole card, so the energy includes other processes and the card's idle power.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from typing import Final

FEWEST_RESOLUTIONS: Final = 10
"""Shortest interval with an energy, in resolutions, for an error of 10 % at most."""
INTERVAL: Final = 0.1
"""Seconds between two readings."""
_KEPT_READINGS: Final = 36_000


@dataclass(frozen=True, slots=True)
class Reading:
    """The counter at one time: Unix nanoseconds, and joules."""

    time_ns: int
    joules: float


@dataclass(frozen=True, slots=True)
class Condition:
    """The state of a card at one time.

    Attributes:
        time_ns: Unix nanoseconds.
        reasons: NVML's reasons for its clocks, as bits.
        memory_share: share of its memory in use, by all processes.
    """

    time_ns: int
    reasons: int
    memory_share: float


class Readings:
    """Readings of one card, in order of time.

    Attributes:
        period: seconds between two changes of the counter; ``None`` until it was measured.
    """

    def __init__(self) -> None:
        self.period: float | None = None
        # An hour of readings: a longer request has no energy.
        self._readings: deque[Reading] = deque(maxlen=_KEPT_READINGS)
        self._conditions: deque[Condition] = deque(maxlen=_KEPT_READINGS)
        self._lock = threading.Lock()

    def note(self, condition: Condition) -> None:
        """Store a state of the card."""
        self._conditions.append(condition)

    def conditions(self, start_ns: int, end_ns: int) -> list[Condition]:
        """The states between two times, and the next one after them."""
        reach = end_ns + round(2 * INTERVAL * 1e9)
        return [noted for noted in list(self._conditions) if start_ns <= noted.time_ns <= reach]

    def add(self, reading: Reading) -> None:
        """Store a reading. If it is below the last one (the driver was loaded again), earlier ones are discarded."""
        with self._lock:
            if self._readings and reading.joules < self._readings[-1].joules:
                self._readings.clear()
            self._readings.append(reading)

    @property
    def last(self) -> Reading | None:
        """The newest reading."""
        return self._readings[-1] if self._readings else None

    @property
    def resolution(self) -> float | None:
        """Seconds that an interval is uncertain by, at most; ``None`` until the period is known."""
        return None if self.period is None else self.period + INTERVAL

    def between(self, start_ns: int, end_ns: int) -> float | None:
        """Joules between two times.

        Args:
            start_ns: Unix nanoseconds.
            end_ns: the same.

        Returns:
            ``None`` below the shortest interval, and for times that the readings do not cover.
        """
        resolution = self.resolution
        if resolution is None or (end_ns - start_ns) / 1e9 < FEWEST_RESOLUTIONS * resolution:
            return None
        with self._lock:
            readings = list(self._readings)
        ends = [_at(readings, when, resolution) for when in (start_ns, end_ns)]
        return None if ends[0] is None or ends[1] is None else max(0.0, ends[1] - ends[0])


def _at(readings: list[Reading], time_ns: int, slack: float) -> float | None:
    """The counter at a time, on the line through the readings around it, and a little beyond the first and the last."""
    if len(readings) < 2:
        return None
    reach = round(slack * 1e9)
    if time_ns < readings[0].time_ns - reach or time_ns > readings[-1].time_ns + reach:
        return None
    after = bisect_right(readings, time_ns, key=lambda reading: reading.time_ns)
    after = min(max(after, 1), len(readings) - 1)
    left, right = readings[after - 1], readings[after]
    slope = (right.joules - left.joules) / max(1, right.time_ns - left.time_ns)
    return left.joules + slope * (time_ns - left.time_ns)
