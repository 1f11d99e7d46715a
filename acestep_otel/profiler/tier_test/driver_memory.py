"""How much device memory this process holds, as its driver sees it: the allocator's, and everything beside it.

The driver's list of processes is asked through NVML. Where it does not name this process (containers hide process
ids, virtual machines may hide memory), the growth of the whole device since before the process used it is taken; where
there is no NVML, nothing is known beyond the allocator.
"""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_right
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import pynvml

from acestep_otel.profiler.tier_test.trials import DriverSource
from acestep_otel.recording.gpu_metrics import uuid_of

if TYPE_CHECKING:
    import torch

PERIOD: Final = 0.02
"""Seconds between two looks; a look takes some tens of microseconds."""


@dataclass(frozen=True, slots=True)
class UseBefore:
    """Bytes in use on each device, by its UUID, before this process used any; empty without NVML."""

    by_uuid: dict[str, int]

    @classmethod
    def read(cls) -> Self:
        """Look now; this does not touch CUDA."""
        try:
            pynvml.nvmlInit()
            handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
            return cls(
                {pynvml.nvmlDeviceGetUUID(handle): pynvml.nvmlDeviceGetMemoryInfo(handle).used for handle in handles}
            )
        except pynvml.NVMLError:
            return cls({})


@dataclass(frozen=True, slots=True)
class DriverView:
    """The driver's view of this process on one device.

    Attributes:
        source: what is asked.
        handle: NVML's of the device.
        before: bytes that others held before; taken off where the whole device is asked.
    """

    source: DriverSource
    handle: Any
    before: int = 0

    @classmethod
    def of(cls, device: torch.device, before: UseBefore) -> Self | None:
        """The best view there is of a device that is in use by now; ``None`` off CUDA and without NVML."""
        if device.type != "cuda" or (uuid := uuid_of(device)) not in before.by_uuid:
            return None
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        listed = cls("nvml_process", handle)
        if listed.used() is not None:
            return listed
        return cls("nvml_device", handle, before.by_uuid[uuid])

    def used(self) -> int | None:
        """Bytes held now; ``None`` when the driver does not say."""
        try:
            if self.source == "nvml_device":
                return max(0, int(pynvml.nvmlDeviceGetMemoryInfo(self.handle).used) - self.before)
            processes = pynvml.nvmlDeviceGetComputeRunningProcesses(self.handle)
        except pynvml.NVMLError:
            return None
        return next((process.usedGpuMemory for process in processes if process.pid == os.getpid()), None)


class MemoryWatch:
    """Looks at the driver's view every now and then in a thread of its own, and when asked to.

    Used as a context manager. Memory that was taken and given back between two looks is missed; the allocator's own
    counters do not miss it.
    """

    def __init__(self, view: DriverView | None, period: float = PERIOD) -> None:
        self._view = view
        self._period = period
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._lock = threading.Lock()
        self._times: list[int] = []
        self._levels: list[int] = []

    def __enter__(self) -> Self:
        if self._view is not None:
            self.look()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._view is not None:
            self._stop.set()
            self._thread.join()

    def look(self) -> int | None:
        """Bytes held now; ``None`` without a view."""
        used = None if self._view is None else self._view.used()
        if used is not None:
            with self._lock:
                # Only changes are kept: a song takes minutes, its memory changes some hundred times.
                if not self._levels or self._levels[-1] != used:
                    self._times.append(time.time_ns())
                    self._levels.append(used)
        return used

    def peak(self, start_ns: int, end_ns: int) -> int | None:
        """Highest bytes between two moments (Unix nanoseconds); ``None`` when nobody had looked by then."""
        with self._lock:
            # The level at the start is the last one that was seen before it.
            first = max(0, bisect_right(self._times, start_ns) - 1)
            levels = self._levels[first : bisect_right(self._times, end_ns)]
        return max(levels, default=None)

    def _watch(self) -> None:
        while not self._stop.wait(self._period):
            self.look()
