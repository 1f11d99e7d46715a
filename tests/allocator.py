"""Stands in for the memory counters of a CUDA device, which the test machine lacks."""

from __future__ import annotations

from typing import Any

import pytest
import torch


class Allocator:
    """The counters that PyTorch keeps, and how often they were read and reset."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.allocated = self.allocated_peak = 0
        self.reserved = 0
        self.retries = self.out_of_memory = self.driver_allocations = 0
        self.reads = self.resets = 0
        monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", self.counters)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self.reset)

    def use(self, allocated: int) -> None:
        self.allocated = allocated
        self.allocated_peak = max(self.allocated_peak, allocated)
        self.reserved = max(self.reserved, allocated)

    def counters(self, _device: torch.device) -> dict[str, Any]:
        self.reads += 1
        return {
            "allocated_bytes": {"all": {"current": self.allocated, "peak": self.allocated_peak}},
            "reserved_bytes": {"all": {"current": self.reserved, "peak": self.reserved}},
            "num_alloc_retries": self.retries,
            "num_ooms": self.out_of_memory,
            "num_device_alloc": self.driver_allocations,
        }

    def reset(self, _device: torch.device) -> None:
        self.resets += 1
        self.allocated_peak = self.allocated
