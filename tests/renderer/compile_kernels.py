"""Compile the renderer's kernels for a GPU that need not be there, and print what came out as JSON.

python -m tests.renderer.compile_kernels 90      # compute capability
"""

import json
import sys

from acestep.renderer import kernels
from acestep.renderer.fused_decoder import TILE
from tests.planner.compile_kernels import compiled

TYPES = {
    **dict.fromkeys(("cosine_ptr", "sine_ptr"), "*fp32"),
    **dict.fromkeys(("length", "frames", "rows", "first", "dilation", "count"), "i32"),
    "eps": "fp32",
}
"""Of the kernels' parameters; all others point to weights and hidden states in bfloat16."""
CONVOLUTION = {
    "HAS_BIAS": True,
    "HAS_RESIDUAL": False,
    "STORES_PLAIN": True,
    "STORES_ACTIVATED": True,
    **TILE,
}


def main(capability: int) -> None:
    """Compile every kernel at sizes of the released models: the widest layers, and the narrowest."""
    wide, narrow = {"CHANNELS": 1024, "OUT_CHANNELS": 1024}, {"CHANNELS": 128, "OUT_CHANNELS": 2}
    launches = [
        (kernels.modulated_norm, {"N": 2048, "N_BLOCK": 2048, "ADDS": True, "GATES": True, "MODULATES": True}),
        (kernels.norm_heads, {"HEADS": 16, "HEADS_BLOCK": 16, "HALF": 64, "ROTATES": True}),
        (kernels.gated, {"BLOCK": 1024}),
        (kernels.convolve, CONVOLUTION | wide | {"TAPS": 7, "STRIDE": 1, "HAS_RESIDUAL": True}),
        (kernels.convolve, CONVOLUTION | wide | {"CHANNELS": 2048, "TAPS": 2, "STRIDE": 10}),
        (
            kernels.convolve,
            CONVOLUTION
            | narrow
            | {"TAPS": 7, "STRIDE": 1, "HAS_BIAS": False, "STORES_ACTIVATED": False, "N_BLOCK": 16},
        ),
    ]
    print(json.dumps([compiled(kernel, options, capability, TYPES) for kernel, options in launches]))


if __name__ == "__main__":
    main(int(sys.argv[1]))
