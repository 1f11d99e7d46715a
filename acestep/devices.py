"""Which device, which number type, and which placement it can run: resolved once, never silently replaced."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from typing import Final

import torch

from acestep.errors import DeviceUnavailable, PlacementUnavailable
from acestep.types import Placement, Quantization

DEVICE_NAMES: Final = ("auto", "cuda", "mps", "cpu")

_CAPABILITY: Final[dict[Quantization, tuple[int, int]]] = {
    "int8_weight_only": (7, 0),
    "fp8_weight_only": (8, 9),
    "w8a8_dynamic": (8, 0),
}
"""Oldest CUDA compute capability with the instructions that a form needs."""
_COMPILE_CAPABILITY: Final = (7, 0)
"""Oldest one that PyTorch's compiler generates kernels for."""
_CPP_COMPILERS: Final = ("c++", "g++", "clang++", "cl")


def resolve_device(name: str) -> torch.device:
    """Resolve the name of a device.

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
    if kind not in DEVICE_NAMES or (index and not re.fullmatch("[0-9]{1,4}", index)):
        raise DeviceUnavailable(f"unknown device {name!r}: choose auto, cuda, cuda:N, mps or cpu")
    if kind == "cuda":
        return _cuda_device(name, int(index) if index else None)
    if kind == "mps" and not torch.backends.mps.is_available():
        raise DeviceUnavailable(
            "device 'mps' was requested, but this PyTorch finds no Apple GPU: choose `device` cpu or auto"
        )
    return torch.device(kind)


def _cuda_device(name: str, index: int | None) -> torch.device:
    if not torch.cuda.is_available():
        build = torch.version.cuda
        reason = "no CUDA device is visible" if build else "this PyTorch was built without CUDA"
        raise DeviceUnavailable(
            f"device {name!r} was requested, but {reason}: choose `device` cpu, or install a CUDA build of PyTorch"
        )
    count = torch.cuda.device_count()
    if index is not None and index >= count:
        raise DeviceUnavailable(
            f"device {name!r} was requested, but there are only {count} CUDA devices (0 ... {count - 1})"
        )
    return torch.device("cuda", torch.cuda.current_device() if index is None else index)


def default_dtype(device: torch.device) -> torch.dtype:
    """Number type of the weights: bfloat16 on CUDA, float32 elsewhere (the language model overflows in float16)."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def effective_placement(placement: Placement, device: torch.device) -> Placement:
    """The part of a placement that takes effect on a device; allocates no memory.

    Only CUDA devices have separate memory; elsewhere there is nothing to offload.

    Raises:
        PlacementUnavailable: the device cannot run this form of weights, or cannot compile.
    """
    offloads = placement.offload_to_cpu and device.type == "cuda"
    effective = replace(
        placement,
        offload_to_cpu=offloads,
        offload_dit_to_cpu=offloads and placement.offload_dit_to_cpu,
        compile=placement.compile or placement.quantization is not None,
        automatic_offload=offloads and placement.automatic_offload,
    )
    if placement.quantization is not None:
        _require_quantization(placement.quantization, device)
    if effective.compile:
        _require_compiler(device)
    return effective


def _require_quantization(form: Quantization, device: torch.device) -> None:
    if device.type == "mps":
        raise PlacementUnavailable(f"quantization {form} does not run on mps: leave out `quantization`")
    if device.type == "cuda" and (found := _capability(device)) < (needed := _CAPABILITY[form]):
        others = [other for other, capability in _CAPABILITY.items() if capability <= found]
        raise PlacementUnavailable(
            f"quantization {form} needs a GPU of compute capability {_dotted(needed)}, and {device} has "
            f"{_dotted(found)}: " + (f"choose {' or '.join(others)}, or none" if others else "leave out `quantization`")
        )


def _require_compiler(device: torch.device) -> None:
    if device.type == "mps":
        raise PlacementUnavailable("compiled models do not run on mps: leave out `compile`")
    if device.type == "cuda" and (found := _capability(device)) < _COMPILE_CAPABILITY:
        raise PlacementUnavailable(
            f"compiled models need a GPU of compute capability {_dotted(_COMPILE_CAPABILITY)}, and {device} has "
            f"{_dotted(found)}: leave out `compile` and `quantization`"
        )
    # Where PyTorch's compiler looks for it: CXX, then these names.
    if device.type == "cpu" and not ("CXX" in os.environ or any(map(shutil.which, _CPP_COMPILERS))):
        raise PlacementUnavailable(
            "compiled models need a C++ compiler on the CPU, and none was found: install g++ or clang, or leave out "
            "`compile` and `quantization`"
        )


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
