"""Which device, which number type: resolved once, never silently replaced."""

from __future__ import annotations

import torch

from acestep.errors import DeviceUnavailable

DEVICE_NAMES = ("auto", "cuda", "mps", "cpu")


def resolve_device(name: str) -> torch.device:
    """Turn the user's word into a device.

    Args:
        name: ``auto`` (CUDA, then MPS, then CPU), ``cuda``, ``cuda:N``, ``mps`` or ``cpu``.

    Raises:
        DeviceUnavailable: the name is unknown, or this machine has no such device. An explicit choice is never
            replaced by another device: that would change what is measured.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in DEVICE_NAMES or (index and not index.isdigit()):
        raise DeviceUnavailable(f"unknown device {name!r}: choose auto, cuda, cuda:N, mps or cpu")
    if kind == "cuda":
        return _cuda_device(name, int(index) if index else None)
    if kind == "mps" and not torch.backends.mps.is_available():
        raise DeviceUnavailable(
            "device 'mps' was asked for, but this PyTorch sees no Apple GPU: use --device cpu or --device auto"
        )
    return torch.device(kind)


def _cuda_device(name: str, index: int | None) -> torch.device:
    if not torch.cuda.is_available():
        build = torch.version.cuda
        reason = "no CUDA device is visible" if build else "this PyTorch was built without CUDA"
        raise DeviceUnavailable(
            f"device {name!r} was asked for, but {reason}: use --device cpu, or install a CUDA build of PyTorch"
        )
    count = torch.cuda.device_count()
    if index is not None and index >= count:
        raise DeviceUnavailable(
            f"device {name!r} was asked for, but there are only {count} CUDA devices (0 ... {count - 1})"
        )
    return torch.device("cuda", torch.cuda.current_device() if index is None else index)


def default_dtype(device: torch.device) -> torch.dtype:
    """Number type of the weights: bfloat16 on CUDA, float32 elsewhere (the language model overflows in float16)."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32
