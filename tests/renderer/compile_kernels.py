"""Compile the renderer's kernels for a GPU that need not be there, and print what came out as JSON.

python -m tests.renderer.compile_kernels 90      # compute capability
"""

import json
import sys
from typing import Any

from acestep.renderer import kernels
from acestep.renderer.fused_decoder import block_sizes
from tests.planner.compile_kernels import compiled

TYPES = {
    **dict.fromkeys(("cosine_ptr", "sine_ptr"), "*fp32"),
    **dict.fromkeys(("length", "frames", "rows", "first", "dilation", "count"), "i32"),
    "eps": "fp32",
}
"""Of the kernels' parameters; all others point to weights and hidden states in bfloat16."""
LAYERS = (
    {"CHANNELS": 1024, "OUT_CHANNELS": 1024, "TAPS": 7, "STRIDE": 1},
    {"CHANNELS": 128, "OUT_CHANNELS": 128, "TAPS": 7, "STRIDE": 1},
    {"CHANNELS": 1024, "OUT_CHANNELS": 1024, "TAPS": 1, "STRIDE": 1, "HAS_RESIDUAL": True},
    {"CHANNELS": 128, "OUT_CHANNELS": 128, "TAPS": 1, "STRIDE": 1, "HAS_RESIDUAL": True},
    {"CHANNELS": 2048, "OUT_CHANNELS": 1024, "TAPS": 2, "STRIDE": 10},
    {"CHANNELS": 128, "OUT_CHANNELS": 128, "TAPS": 2, "STRIDE": 2},
)
"""The widest and the narrowest layer of each kind."""
AUDIO = {"CHANNELS": 128, "OUT_CHANNELS": 2, "TAPS": 7, "STRIDE": 1, "HAS_BIAS": False, "STORES_ACTIVATED": False}
"""The last layer, which is not copied by descriptors."""


def main(capability: int) -> None:
    """Compile every kernel at sizes of the released models."""
    launches = [
        (kernels.modulated_norm, {"N": 2048, "N_BLOCK": 2048, "ADDS": True, "GATES": True, "MODULATES": True}),
        (kernels.norm_heads, {"HEADS": 16, "HEADS_BLOCK": 16, "HALF": 64, "ROTATES": True}),
        (kernels.gated, {"BLOCK": 1024}),
    ]
    results = [compiled(kernel, options, capability, TYPES) for kernel, options in launches]
    results += [convolution(layer, capability, by_descriptor=False) for layer in (*LAYERS, AUDIO)]
    if capability >= 90:
        results += [convolution(layer, capability, by_descriptor=True) for layer in LAYERS]
    print(json.dumps(results))


def convolution(layer: dict[str, Any], capability: int, *, by_descriptor: bool) -> dict[str, Any]:
    """What the compiler makes of one layer."""
    shape = {"HAS_BIAS": True, "HAS_RESIDUAL": False, "STORES_PLAIN": True, "STORES_ACTIVATED": True, **layer}
    sizes = block_sizes(
        layer["CHANNELS"], layer["OUT_CHANNELS"], layer["TAPS"], layer["STRIDE"], by_descriptor=by_descriptor
    )
    types = dict(TYPES)
    if by_descriptor:
        types["x_source"] = f"tensordesc<bf16[{sizes['T_BLOCK']}, {sizes['K_BLOCK']}]>"
        types["weight_source"] = f"tensordesc<bf16[{sizes['K_BLOCK']}, {sizes['N_BLOCK']}]>"
    options = {**shape, "BY_DESCRIPTOR": by_descriptor, **sizes}
    return {**compiled(kernels.convolve, options, capability, types), "by_descriptor": by_descriptor}


if __name__ == "__main__":
    main(int(sys.argv[1]))
