"""Where weights live, in which form, and whether the code around them is compiled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Quantization = Literal["int8_weight_only", "fp8_weight_only", "w8a8_dynamic"]
"""Forms of the diffusion transformer's weights beside the model's own dtype."""


@dataclass(frozen=True, slots=True)
class Placement:
    """How loaded models share a device.

    Attributes:
        offload_to_cpu: models wait in host memory while they are not in use.
        offload_dit_to_cpu: so does the diffusion transformer; without effect unless ``offload_to_cpu`` is set.
        quantization: form of the diffusion transformer's weights; ``None`` keeps the model's dtype.
        compile: compile the code that runs; a quantised transformer is always compiled.
    """

    offload_to_cpu: bool = False
    offload_dit_to_cpu: bool = False
    quantization: Quantization | None = None
    compile: bool = False
