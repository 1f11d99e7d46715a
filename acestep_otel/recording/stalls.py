"""Steps and tiles that took many times as long as those before them, and the likely cause.

A step is compared with the median of the last steps of the same shape, a tile with that of the last tiles per frame,
over all requests of the process. While the request runs, nothing is read for this purpose alone: the allocator's
counters are read at the end of stages, and the card's clocks by the thread that also reads its energy.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Final, Literal

Cause = Literal["out_of_memory", "allocator", "offload", "throttled", "driver_spill", "host", "unknown"]

STALL_FACTOR: Final = 5.0
"""Multiple of the median from which a duration is a stall."""
_SHORTEST_EXCESS: Final = 0.1
"""Fewest seconds beyond the median that are a stall, whatever the ratio."""
_FEWEST: Final = 5
"""Fewest durations that have a median."""
_KEPT: Final = 101
_SHAPES: Final = 64
_WAITED: Final = 1 - 1 / STALL_FACTOR
"""Share of a stall that is beyond the median, at least: for so long the host was busy if it caused the stall."""
_FULL: Final = 0.97
"""Share of the card's memory from which a driver that can spill is assumed to do so."""

THROTTLE_REASONS: Final = {
    0x08: "hardware slowdown",
    0x20: "thermal limit (software)",
    0x40: "thermal limit (hardware)",
    0x80: "power brake (hardware)",
}
"""Bits of NVML's reasons that lower the clocks below what full load explains; a software power cap at load is usual."""


@dataclass(frozen=True, slots=True)
class Stall:
    """A step or a tile that took too long.

    Attributes:
        ratio: its duration over the median.
        usual: the median, in seconds.
    """

    ratio: float
    usual: float


class RunningMedians:
    """Durations of steps and tiles by their shape."""

    def __init__(self) -> None:
        self._durations: OrderedDict[Hashable, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def observe(self, shape: Hashable, seconds: float, units: float = 1.0) -> Stall | None:
        """Compare a duration with those before it, and store it.

        Args:
            shape: key of the durations that it can be compared with.
            seconds: the duration.
            units: number of units by which it is divided, for example frames.
        """
        with self._lock:
            durations = self._durations.setdefault(shape, deque(maxlen=_KEPT))
            self._durations.move_to_end(shape)
            if len(self._durations) > _SHAPES:
                self._durations.popitem(last=False)
            usual = median(durations) * units if len(durations) >= _FEWEST else None
            durations.append(seconds / units)
        if usual is None or seconds < STALL_FACTOR * usual or seconds - usual < _SHORTEST_EXCESS:
            return None
        return Stall(seconds / usual, usual)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Observations from the time of a stall.

    Attributes:
        retries: times that the allocator freed its cache and tried again, during the stage.
        out_of_memory: ways to decode that ran out of memory before this one, or errors that the allocator counted.
        moved: names of models that moved between host and device inside the stage.
        driver_allocations: times that the driver gave the allocator memory, during the stage.
        on_host: whether the stage ran on the host instead of the device.
        throttled: NVML's reasons for low clocks, as bits, all that were seen.
        memory_share: highest share of the card's memory in use, by all processes; ``None`` without NVML.
        host_share: seconds that the host was busy in the call over those of the device; ``None`` on the host's clock.
    """

    retries: int = 0
    out_of_memory: int = 0
    moved: tuple[str, ...] = ()
    driver_allocations: int = 0
    on_host: bool = False
    throttled: int = 0
    memory_share: float | None = None
    host_share: float | None = None

    @property
    def cause(self) -> tuple[Cause, str]:
        """The most likely cause and its evidence. Signs of a full card come first, because they cause the others.

        A model that moves, or a driver that spills, allocates as well; so memory from the driver is a cause only after
        them, and only where the host, which waits for the driver, was busy for as long as the stall.
        """
        reasons = [words for bit, words in THROTTLE_REASONS.items() if self.throttled & bit]
        if self.out_of_memory:
            where = "on the host, " if self.on_host else ""
            return "out_of_memory", f"{where}after {self.out_of_memory} attempts that ran out of memory"
        if self.on_host:
            return "host", "decoded on the host by choice: compilation, another thread, or swapped memory"
        if self.retries:
            return "allocator", f"{self.retries} allocator retries: memory was fragmented or full"
        if self.moved:
            return "offload", f"moved inside the stage: {', '.join(self.moved)}"
        if reasons:
            return "throttled", ", ".join(reasons)
        if self.memory_share is not None and self.memory_share >= _FULL and driver_can_spill():
            return "driver_spill", f"{100 * self.memory_share:.0f} % of the card's memory in use"
        if self.driver_allocations and (self.host_share is None or self.host_share >= _WAITED):
            words = "allocations from the driver: the allocator's cache was empty or too small"
            return "allocator", f"{self.driver_allocations} {words}"
        if self.host_share is not None and self.host_share >= _WAITED:
            return "host", "the device waited for the host: compilation, another thread, or a slow disk"
        return "unknown", "no counter explains it"


@cache
def driver_can_spill() -> bool:
    """Whether the driver may put a full card's memory into the host's: on Windows, and in its Linux subsystem."""
    if sys.platform == "win32":
        return True
    version = Path("/proc/version")
    return version.is_file() and "microsoft" in version.read_text("utf-8", errors="replace").lower()
