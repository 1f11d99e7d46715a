"""Compile the kernels for a GPU that need not be present, and print the result as JSON.

python -m tests.planner.compile_kernels acestep-5Hz-lm-1.7B 90 0    # architecture, compute capability, slots of a page
"""

import json
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from acestep.planner.backends.pt import kernels
from acestep.planner.backends.pt.fused import ATTENTION_TILE, GATE_TILE, INPUT_TILE, OUTPUT_TILE, fitting
from acestep.synthetic.language_model import LANGUAGE_MODEL_CONFIGS

TYPES = {
    **dict.fromkeys(("ids_ptr", "places_ptr", "rows_ptr"), "*i64"),
    **dict.fromkeys(("frequencies_ptr", "partial_ptr", "maxima_ptr", "sums_ptr", "squares_ptr"), "*fp32"),
    **dict.fromkeys(("eps", "scale"), "fp32"),
    "arrivals_ptr": "*i32",
    "lanes": "i32",
    "table_width": "i32",
}
"""Of the kernels' parameters; all others point to weights and hidden states in bfloat16."""
PAGED: dict[str, str] = TYPES | dict.fromkeys(("ids_ptr", "places_ptr", "rows_ptr"), "*i32")
"""The same where vLLM launches them."""


def main(name: str, capability: int, page: int) -> None:
    """Compile every kernel at the sizes of one architecture, for a cache in pages of so many slots; 0 for no pages."""
    size = LANGUAGE_MODEL_CONFIGS[name]
    hidden, inner = size.hidden_size, size.feed_forward_size
    q_size, kv_size = size.heads * size.head_dim, size.kv_heads * size.head_dim
    attention = {"TOKENS": 1, "HEADS": size.heads, "KV_HEADS": size.kv_heads, "HALF": size.head_dim // 2}
    pages = {"PAGE": page, "PAGE_STRIDE": 2 * page * kv_size, "SLOT_STRIDE": kv_size, "HEAD_STRIDE": size.head_dim}
    columns = fitting(OUTPUT_TILE, hidden, inner)["N_BLOCK"]
    norm = {"K": hidden, "SHARES": hidden // columns}
    launches = [
        (kernels.embed, {"N": hidden, "N_BLOCK": columns, "num_warps": 1}),
        (kernels.project_inputs, {"Q": q_size, "KV": kv_size, **norm, **fitting(INPUT_TILE, kv_size, hidden)}),
        (kernels.attend, attention | pages | ATTENTION_TILE),
        (kernels.gate, {"N": inner, **norm, **fitting(GATE_TILE, inner, hidden)}),
        (kernels.project_onto, {"K": inner, "N": hidden, **fitting(OUTPUT_TILE, hidden, inner)}),
    ]
    types = PAGED if page else TYPES
    print(json.dumps([compiled(kernel, options, capability, types) for kernel, options in launches]))


def compiled(kernel: Any, options: dict[str, int], capability: int, types: dict[str, str] = TYPES) -> dict[str, Any]:
    """What the compiler makes of one kernel with these constants and launch options; other parameters are bfloat16."""
    constants = {key: value for key, value in options.items() if key in kernel.arg_names}
    signature = {key: "constexpr" if key in constants else types.get(key, "*bf16") for key in kernel.arg_names}
    place = {key: (index,) for index, key in enumerate(kernel.arg_names)}
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={place[key]: value for key, value in constants.items()},
        attrs={place[key]: [["tt.divisibility", 16]] for key, kind in signature.items() if kind.startswith("*")},
    )
    launch = {key: value for key, value in options.items() if key not in constants}
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch)
    ptx = result.asm["ptx"]
    return {
        "name": kernel.__name__,
        "cubin_bytes": len(result.asm["cubin"]),
        "shared_memory": result.metadata.shared,
        "asynchronous_copies": ptx.count("cp.async.cg"),
        "descriptor_copies": ptx.count("cp.async.bulk.tensor"),
        "tensor_core_products": ptx.count("mma.sync"),
    }


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
