"""Device memory of one trial: the allocator's counters, and the driver's view of the same stages.

The driver's list of processes is read through NVML. Where it does not name this process (containers hide process
ids, virtual machines may hide memory), its value is the growth of the whole device since before
the process used it. Without NVML, only the allocator's values exist.
"""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import pynvml
import torch

from acestep_otel import semconv
from acestep_otel.profiler.report.spans import FinishedSpan
from acestep_otel.profiler.tier_test.trials import DriverSource, MemoryUse, StageMemory
from acestep_otel.recording.gpu_metrics import uuid_of

if TYPE_CHECKING:
    import torch


PERIOD: Final = 0.02
"""Seconds between two readings; a reading takes some tens of microseconds."""


@dataclass(frozen=True, slots=True)
class Interval:
    """When a stage ran: Unix nanoseconds of the host's clock."""

    stage: str
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class UseBefore:
    """Bytes in use on each device, by UUID, before this process used any device; empty without NVML."""

    by_uuid: dict[str, int]

    @classmethod
    def read(cls) -> Self:
        """Read the present use, without using CUDA."""
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
        source: what is queried.
        handle: NVML's handle of the device.
        before: earlier use by other processes in bytes; subtracted if the whole device is queried.
    """

    source: DriverSource
    handle: Any
    before: int = 0

    @classmethod
    def of(cls, device: torch.device, before: UseBefore) -> Self | None:
        """The best available view of a device that is already in use; ``None`` off CUDA and without NVML."""
        if device.type != "cuda" or (uuid := uuid_of(device)) not in before.by_uuid:
            return None
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        listed = cls("nvml_process", handle)
        if listed.used() is not None:
            return listed
        return cls("nvml_device", handle, before.by_uuid[uuid])

    def used(self) -> int | None:
        """Bytes in use now; ``None`` if the driver does not report them."""
        try:
            if self.source == "nvml_device":
                return max(0, int(pynvml.nvmlDeviceGetMemoryInfo(self.handle).used) - self.before)
            processes = pynvml.nvmlDeviceGetComputeRunningProcesses(self.handle)
        except pynvml.NVMLError:
            return None
        return next((process.usedGpuMemory for process in processes if process.pid == os.getpid()), None)


class MemoryWatch:
    """Reads the driver's value periodically in a background thread, and on request.

    Used as a context manager. Memory that was allocated and freed between two readings is missed; the allocator's own
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
        """Read the bytes in use now; ``None`` without a view."""
        used = None if self._view is None else self._view.used()
        if used is not None:
            with self._lock:
                # Only changes are kept: a song takes minutes, its memory changes some hundred times.
                if not self._levels or self._levels[-1] != used:
                    self._times.append(time.time_ns())
                    self._levels.append(used)
        return used

    def peak(self, start_ns: int, end_ns: int) -> int | None:
        """Highest bytes between two moments (Unix nanoseconds); ``None`` without a reading."""
        with self._lock:
            # The level at the start is that of the last reading before it.
            first = max(0, bisect_right(self._times, start_ns) - 1)
            levels = self._levels[first : bisect_right(self._times, end_ns)]
        return max(levels, default=None)

    def _watch(self) -> None:
        while not self._stop.wait(self._period):
            self.look()


REFERENCE_CONTEXT: Final = 512 * 2**20
"""Bytes beyond the allocator's that are assumed if the driver cannot be queried."""


def memory_use(
    device: torch.device,
    view: DriverView | None,
    watch: MemoryWatch,
    spans: Sequence[FinishedSpan],
    intervals: Sequence[Interval],
) -> MemoryUse | None:
    """The memory use of a finished trial; ``None`` off CUDA.

    Args:
        device: device that it ran on.
        view: the driver's view, or ``None``.
        watch: readings of the whole trial.
        spans: those of the trial, with the allocator's peaks.
        intervals: its stages by the host's clock.
    """
    if device.type != "cuda":
        return None
    # The reserve and the driver's value only match while nothing is being allocated.
    torch.cuda.synchronize(device)
    held = None if view is None else view.used()
    context = REFERENCE_CONTEXT if held is None else max(0, held - torch.cuda.memory_reserved(device))
    # The counters were last reset when the last stage began; work after this stage counts as well.
    counters = torch.cuda.memory_stats(device)
    stages = tuple(_stages(spans, intervals, watch))
    allocated = [counters["allocated_bytes.all.peak"], *(stage.allocated for stage in stages)]
    reserved = [counters["reserved_bytes.all.peak"], *(stage.reserved for stage in stages)]
    return MemoryUse(
        source="reserved_and_reference_context" if view is None else view.source,
        context=context,
        allocated=_highest(allocated) or 0,
        reserved=_highest(reserved) or 0,
        driver=_highest([held, *(stage.driver for stage in stages)]),
        stages=stages,
    )


def _stages(spans: Sequence[FinishedSpan], intervals: Sequence[Interval], watch: MemoryWatch) -> Iterator[StageMemory]:
    """Every kind of stage once, in the order that they first ended."""
    for stage in dict.fromkeys(interval.stage for interval in intervals):
        peaks = [span.attributes for span in spans if semconv.stage_of(span.name) == stage]
        looks = [watch.peak(found.start_ns, found.end_ns) for found in intervals if found.stage == stage]
        yield StageMemory(
            stage,
            allocated=_highest(found.get(semconv.VRAM_PEAK_ALLOCATED) for found in peaks),
            reserved=_highest(found.get(semconv.VRAM_PEAK_RESERVED) for found in peaks),
            driver=_highest(looks),
        )


def _highest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)
