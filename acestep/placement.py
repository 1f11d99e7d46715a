"""Where weights live, in which form, and whether the code around them is compiled."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from acestep.errors import PlacementUnavailable

if TYPE_CHECKING:
    import torch

Quantization = Literal["int8_weight_only", "fp8_weight_only", "w8a8_dynamic"]
"""Forms of the diffusion transformer's weights beside the model's own dtype."""

_CAPABILITY: Final[dict[Quantization, tuple[int, int]]] = {
    "int8_weight_only": (7, 0),
    "fp8_weight_only": (8, 9),
    "w8a8_dynamic": (8, 0),
}
"""Oldest CUDA compute capability with the instructions that a form needs."""
_COMPILE_CAPABILITY: Final = (7, 0)
"""Oldest that PyTorch's compiler makes kernels for."""
_CPP_COMPILERS: Final = ("c++", "g++", "clang++", "cl")


@dataclass(frozen=True, slots=True)
class Placement:
    """How loaded models share a device.

    Attributes:
        offload_to_cpu: models wait in host memory while they are not in use.
        offload_dit_to_cpu: so does the diffusion transformer; without effect unless ``offload_to_cpu`` is set.
        quantization: form of the diffusion transformer's weights; ``None`` keeps the model's dtype.
        compile: compile the code that runs; a quantised transformer is always compiled.
        automatic_offload: ``offload_to_cpu`` was chosen for the size of the card, and not by the user.
    """

    offload_to_cpu: bool = False
    offload_dit_to_cpu: bool = False
    quantization: Quantization | None = None
    compile: bool = False
    automatic_offload: bool = False

    def on(self, device: torch.device) -> Placement:
        """What of it comes into effect on a device; touches no memory.

        Only CUDA has a memory of its own to leave; elsewhere there is nothing to offload.

        Raises:
            PlacementUnavailable: the device cannot run this form of weights, or cannot compile.
        """
        offloads = self.offload_to_cpu and device.type == "cuda"
        effective = replace(
            self,
            offload_to_cpu=offloads,
            offload_dit_to_cpu=offloads and self.offload_dit_to_cpu,
            compile=self.compile or self.quantization is not None,
            automatic_offload=offloads and self.automatic_offload,
        )
        if self.quantization is not None:
            _require_quantization(self.quantization, device)
        if effective.compile:
            _require_compiler(device)
        return effective


def _require_quantization(form: Quantization, device: torch.device) -> None:
    if device.type == "mps":
        raise PlacementUnavailable(f"quantization {form} does not run on mps: leave out --quantization")
    if device.type == "cuda" and (found := _capability(device)) < (needed := _CAPABILITY[form]):
        others = [other for other, capability in _CAPABILITY.items() if capability <= found]
        raise PlacementUnavailable(
            f"quantization {form} needs a GPU of compute capability {_dotted(needed)}, and {device} has "
            f"{_dotted(found)}: " + (f"choose {' or '.join(others)}, or none" if others else "leave out --quantization")
        )


def _require_compiler(device: torch.device) -> None:
    if device.type == "mps":
        raise PlacementUnavailable("compiled models do not run on mps: unset ACESTEP_COMPILE_MODEL")
    if device.type == "cuda" and (found := _capability(device)) < _COMPILE_CAPABILITY:
        raise PlacementUnavailable(
            f"compiled models need a GPU of compute capability {_dotted(_COMPILE_CAPABILITY)}, and {device} has "
            f"{_dotted(found)}: unset ACESTEP_COMPILE_MODEL and leave out --quantization"
        )
    if device.type == "cpu" and not ("CXX" in os.environ or any(map(shutil.which, _CPP_COMPILERS))):
        raise PlacementUnavailable(
            "compiled models need a C++ compiler on the CPU, and none was found: install g++ or clang, or unset "
            "ACESTEP_COMPILE_MODEL and leave out --quantization"
        )


def _capability(device: torch.device) -> tuple[int, int]:
    import torch

    return torch.cuda.get_device_capability(device)


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
