"""Made-up rows of a tier test."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from acestep.gpu_config import gpu_config
from acestep.memory_cap import MemoryCap
from acestep_otel.profiler.benchmark.matrix import Failure, Figures
from acestep_otel.profiler.tier_test.trials import (
    GIB,
    AudioFacts,
    Kind,
    MemoryUse,
    Observation,
    StageMemory,
    Status,
    TierResult,
    Trial,
)


def trial(memory: int = 8, kind: Kind = "default", **fields: Any) -> Trial:
    """A trial by a tier's own settings."""
    config = gpu_config(memory)
    made = Trial(memory, config.tier, kind, None, config.placement(), 1, 30.0, 8)
    return replace(made, **fields)


def memory_use(peak: float, **fields: Any) -> MemoryUse:
    """Memory of a process with a peak of ``peak`` GiB, half a GiB of it outside the allocator."""
    reserved = round((peak - 0.5) * GIB)
    made = MemoryUse(
        source="nvml_process",
        context=GIB // 2,
        allocated=round(0.9 * reserved),
        reserved=reserved,
        driver=round(peak * GIB),
        stages=(StageMemory("dit", round(0.9 * reserved), reserved, round(peak * GIB)),),
    )
    return replace(made, **fields)


def effective(of: Trial, **fields: Any) -> dict[str, Any]:
    """Effective settings equal to the trial's request, on CUDA."""
    placement = {
        "offload_to_cpu": of.placement.offload_to_cpu,
        "offload_dit_to_cpu": of.placement.offload_dit_to_cpu,
        "quantization": of.placement.quantization,
        "compile": of.placement.compile,
        "automatic_offload": of.placement.automatic_offload,
    }
    decoding = {"rung": "gpu", "tile_length": 750, "overlap": 9, "tiles": of.batch_size, "attempts": 1}
    backend = None if of.lm_model is None else "pt"
    return {
        "device": "cuda:0", "dtype": "bfloat16", "dit_model": "acestep-v15-turbo", "lm_model": of.lm_model,
        "lm_backend": backend, "steps": of.inference_steps, "shift": 3.0, "guidance_scale": 1.0,
        "batch_size": of.batch_size, "duration": of.duration, "seeds": [42], "weights": "synthetic",
        "placement": placement, "vae_decode": decoding, **fields,
    }  # fmt: skip


def observation(of: Trial, peak: float, **fields: Any) -> Observation:
    """The observation of a successful trial."""
    run = {
        "status": "ok",
        "error": None,
        "effective_settings": effective(of),
        "songs": [],
        "blueprint": None,
        "measurement": None,
    }
    thought = of.batch_size if of.lm_model else 0
    made = Observation(
        device="cuda",
        cap=MemoryCap.of(of.memory, 80 * GIB),
        initialised=True,
        figures=Figures(3.2, 0.4, 1.9, 0.5),
        memory=memory_use(peak),
        audio=AudioFacts(of.batch_size, (of.duration,) * of.batch_size, True, 0.9, thought),
        run=run,
    )
    return replace(made, **fields)


def row(memory: int = 8, kind: Kind = "default", status: Status = "ok", peak: float = 3.0, **fields: Any) -> TierResult:
    """A row with that status."""
    asked = trial(memory, kind, **fields)
    if status == "ok":
        return TierResult(asked, status, None, observation(asked, peak))
    failure = Failure("OutOfMemory" if status == "out_of_memory" else "Failed", "no room for 3 GiB", "dit")
    return TierResult(asked, status, failure)
