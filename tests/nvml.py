"""A double of NVML for machines without a driver."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch

GIB = 2**30


class Nvml:
    """One device, and what its driver says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.used = 1 * GIB
        self.busy: int | None = 0
        self.processes: list[Any] | None = []
        monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
        self.joules: float | None = None
        self.corrected: int | None = None
        monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: "575.57")
        monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", self.energy)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEccErrors", self.errors)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 1)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: uuid)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lambda handle: "GPU-abc")
        monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", self.memory)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", self.rates)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: "NVIDIA H100")
        monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", lambda handle: self.listed())
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="abc"))

    def memory(self, _handle: Any) -> SimpleNamespace:
        return SimpleNamespace(used=self.used, total=80 * GIB)

    def rates(self, _handle: Any) -> SimpleNamespace:
        if self.busy is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(gpu=self.busy, memory=0)

    def energy(self, _handle: Any) -> int:
        """Millijoules."""
        if self.joules is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return round(1000 * self.joules)

    def errors(self, _handle: Any, kind: int, _counter: int) -> int:
        if self.corrected is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return self.corrected if kind == pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED else 0

    def listed(self) -> list[Any]:
        if self.processes is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return self.processes

    def holds(self, used: int | None, pid: int | None = None) -> None:
        self.processes = [SimpleNamespace(pid=1, usedGpuMemory=9 * GIB)]
        self.processes.append(SimpleNamespace(pid=os.getpid() if pid is None else pid, usedGpuMemory=used))
