"""VRAM in use, and the peak of a stage.

The allocator has one peak counter per device, so exactly one owner may reset it. The tracker is that owner: stages
of one request follow each other; if two requests run on one device at once, the peak is that of both and is marked as
shared. The counters are kept by the allocator on the host: reading them does not use the device.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class VramPeak:
    """Highest bytes during a stage.

    Attributes:
        allocated: in live tensors.
        reserved: held by the caching allocator; what the driver sees, less the CUDA context.
        shared: another request ran on the device during the stage.
    """

    allocated: int
    reserved: int
    shared: bool


@dataclass(frozen=True, slots=True)
class VramReading:
    """The allocator's counters at one moment of the host.

    The allocator hands out memory in the order of the stream, while the host may be ahead of the device. So these are
    the bytes that the work enqueued until now needs when the device gets there.

    Attributes:
        allocated: bytes in live tensors.
        reserved: bytes held by the caching allocator.
        peak: of both since the last reset.
        retries: times that the allocator freed its cache and requested memory again, since the process began.
        out_of_memory: times that an allocation failed, likewise.
        driver_allocations: times that the driver gave it memory (``cudaMalloc``, ``cuMemMap``), likewise.
    """

    allocated: int
    reserved: int
    peak: VramPeak
    retries: int = 0
    out_of_memory: int = 0
    driver_allocations: int = 0


class VramTracker:
    """The single owner of the peak counters of all devices."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[torch.device] = Counter()
        self._crowded: set[torch.device] = set()

    @contextmanager
    def request(self, device: torch.device) -> Iterator[None]:
        """Count a request on the device while the block runs."""
        with self._lock:
            self._requests[device] += 1
            if self._requests[device] > 1:
                self._crowded.add(device)
        try:
            yield
        finally:
            with self._lock:
                self._requests[device] -= 1
                if self._requests[device] == 0:
                    self._crowded.discard(device)

    def begin(self, device: torch.device) -> None:
        """Start a stage: the peak is reset to the present use, unless another request runs on the device."""
        if device.type != "cuda":
            return
        import torch

        with self._lock:
            if device not in self._crowded:
                torch.cuda.reset_peak_memory_stats(device)

    def read(self, device: torch.device) -> VramReading | None:
        """The present use, and the peak since ``begin``; ``None`` off CUDA, where there are no such counters."""
        if device.type != "cuda":
            return None
        import torch

        with self._lock:
            shared = device in self._crowded
        # One query of the counters: the public getters flatten and sort all of them for each value.
        counters = torch.cuda.memory_stats_as_nested_dict(device)
        allocated, reserved = (counters[kind]["all"] for kind in ("allocated_bytes", "reserved_bytes"))
        peak = VramPeak(allocated["peak"], reserved["peak"], shared)
        return VramReading(
            allocated["current"],
            reserved["current"],
            peak,
            retries=int(counters.get("num_alloc_retries", 0)),
            out_of_memory=int(counters.get("num_ooms", 0)),
            driver_allocations=int(counters.get("num_device_alloc", 0)),
        )

    def limit(self, device: torch.device) -> int | None:
        """Bytes that this process may use on the device; ``None`` off CUDA."""
        if device.type != "cuda":
            return None
        import torch

        total: int = torch.cuda.get_device_properties(device).total_memory
        return int(total * torch.cuda.get_per_process_memory_fraction(device))
