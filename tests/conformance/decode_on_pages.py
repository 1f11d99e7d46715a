"""Write codes with Model Runner V2 on the CPU, decoded in the engine's kernels, and print them as JSON.

    export TRITON_INTERPRET=1 VLLM_USE_V2_MODEL_RUNNER=1
    python -m tests.conformance.decode_on_pages '[[[5, 6, 7], [5, 6]], 4]'    # prompts, codes

Triton interprets all kernels: the runner's own, those of vLLM's Triton attention, which processes the prompts and
writes their keys and values to pages, and the engine's, which continue from them.
"""

import json
import sys
from types import SimpleNamespace
from typing import Any

import torch
import triton

from acestep.synthetic.language_model import build_language_model
from acestep.types import SamplingSettings

CPU = torch.device("cpu")


def main(prompts: list[list[int]], count: int) -> None:
    """Write so many codes of two songs after a conditional and an unconditional prompt."""
    # vLLM looks for a compiler for the CPU when it is imported.
    triton.backends.backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True), compiler=None)
    from vllm.platforms.cpu import CpuPlatform

    from acestep.planner.backends.vllm import backend as backend_module
    from acestep.planner.backends.vllm import engine
    from acestep.planner.backends.vllm.decode import PagedDecode

    torch.cuda.get_device_capability = lambda *_: (9, 0)  # type: ignore[assignment]
    attention = "vllm.v1.attention.backends.triton_attn.TritonAttentionBackend"
    CpuPlatform.get_attn_backend_cls = classmethod(lambda *_, **__: attention)
    settings = engine._settings
    engine._settings = lambda *given: settings(*given) | {"block_size": engine.BLOCK}
    passes = []

    def of(model: Any) -> Any:
        decode = PagedDecode(model)
        run = decode._run
        decode._run = lambda *given: (passes.append(len(given[0])), run(*given))[1]
        return decode

    PagedDecode.of = of
    # Nothing is rounded to bfloat16 here.
    backend_module.TOLERANCE = 1e-4
    model = build_language_model("acestep-5Hz-lm-tiny", device=CPU, dtype=torch.float32)
    backend = backend_module.VllmBackend(model, device=CPU, songs=2)
    passes.clear()
    tokens = backend.generate_codes(*prompts, count, SamplingSettings(), [1, 2])
    print(json.dumps({"path": backend.decode_path, "passes": passes, "codes": tokens.ids}))
    backend.unload()


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
