"""Identification of a device: the key of its stored peaks."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from acestep_otel.roofline.peaks import DeviceKey

if TYPE_CHECKING:
    import torch


def device_key(device: torch.device) -> DeviceKey:
    """The key of a PyTorch device; makes no driver call that PyTorch has not already made."""
    import torch

    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        return DeviceKey(str(found.name), memory=int(found.total_memory))
    if device.type == "cpu":
        return DeviceKey(processor(), threads=torch.get_num_threads())
    return DeviceKey(f"{processor()} ({device.type})", threads=1)


@cache
def processor() -> str:
    """Model name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
