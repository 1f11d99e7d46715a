"""Placement of a mode's models: from flags and card, and its description."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import cast

import torch

from acestep.environment_variables import EnvironmentSettings
from acestep.gpu_config import detect_gpu_memory, needs_offload
from acestep.types import AdapterScale, EffectiveSettings, Placement, Quantization, VaeDecoding
from acestep_otel.profiler.options import Options


def engine_settings() -> EnvironmentSettings:
    """The engine's settings from the environment; the only place where a mode reads them.

    Raises:
        InvalidRequest: a variable is invalid.
    """
    return EnvironmentSettings.read(os.environ)


def gpu_memory(device: torch.device, settings: EnvironmentSettings) -> float:
    """Memory in GiB that decides the tier: that of the environment, else that of the device."""
    return detect_gpu_memory(device) if settings.gpu_memory is None else settings.gpu_memory


def choose_placement(options: Options, device: torch.device, settings: EnvironmentSettings) -> Placement:
    """The placement of the options; on a card that counts as less than 20 GB, offload is automatic.

    Args:
        options: of the command line.
        device: where the models will run.
        settings: of the environment.
    """
    automatic = not options.offload_to_cpu and device.type == "cuda" and needs_offload(gpu_memory(device, settings))
    return Placement(
        offload_to_cpu=options.offload_to_cpu or automatic,
        offload_dit_to_cpu=options.offload_dit_to_cpu,
        quantization=cast("Quantization | None", options.quantization),
        compile=settings.compile,
        automatic_offload=automatic,
    )


def describe_models(done: EffectiveSettings) -> str:
    """Models, backend, device and format of a run."""
    elsewhere = f" on {done.lm_device}" if done.lm_device else ""
    planner = f", {done.lm_model} ({done.lm_backend}){elsewhere}" if done.lm_model else ""
    return f"{done.dit_model}{planner} on {done.device}, {done.dtype}, weights: {done.weights}"


def describe_adapters(adapters: Sequence[AdapterScale]) -> Iterator[str]:
    """A line about the adapters in use, if there are any."""
    if adapters:
        yield f"adapters: {', '.join(f'{adapter.name} x {adapter.scale:g}' for adapter in adapters)}"


def describe_placement(placement: Placement, options: Options) -> Iterator[str]:
    """A line about the placement that took effect, if any, and one about each flag without effect."""
    words = []
    if placement.offload_to_cpu:
        staying = [] if placement.offload_dit_to_cpu else ["the DiT"]
        if options.lm_backend == "vllm":
            staying.append("vLLM's")
        which = f"all models but {' and '.join(staying)}" if staying else "all models"
        reason = " (automatic: the GPU counts as less than 20 GB)" if placement.automatic_offload else ""
        words.append(f"{which} are kept in host memory while not in use{reason}")
    if placement.quantization is not None:
        words.append(f"DiT quantised: {placement.quantization}")
    if placement.compile:
        words.append("compiled")
    if words:
        yield "; ".join(words)
    if options.offload_to_cpu and not placement.offload_to_cpu:
        yield "--offload-to-cpu has no effect: this device has no separate memory"
    elif options.offload_dit_to_cpu and not placement.offload_to_cpu:
        yield "--offload-dit-to-cpu has no effect without --offload-to-cpu"


def describe_decoding(decoding: VaeDecoding) -> str:
    """A line about the rung that decoded, for the terminal."""
    failed = f", after {decoding.attempts - 1} that ran out of memory" if decoding.attempts > 1 else ""
    return (
        f"VAE on {decoding.rung}: {decoding.tiles} tile{'s' if decoding.tiles > 1 else ''} of {decoding.tile_length} "
        f"frames, overlap {decoding.overlap}{failed}"
    )
