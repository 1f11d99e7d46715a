"""Devices as other libraries name them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class _Host:
    """Stands in for a device in a process that has not loaded PyTorch."""

    type: str


def device_named(name: str) -> torch.device:
    """The device of a name, with its number: ``cuda`` alone is whatever device is current."""
    loaded = sys.modules.get("torch")
    if loaded is None:
        return cast("torch.device", _Host(name))
    if name == "cuda":
        name = f"cuda:{loaded.cuda.current_device()}"
    return cast("torch.device", loaded.device(name))
