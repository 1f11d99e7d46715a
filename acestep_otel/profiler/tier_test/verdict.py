"""The verdict of a trial: it must have run exactly as requested, within the limit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

from acestep.gpu_config import GPUConfig, gpu_config
from acestep.types import Placement
from acestep_otel.profiler.benchmark.matrix import Failure
from acestep_otel.profiler.children.processes import Ending
from acestep_otel.profiler.tier_test.protocol import Finished
from acestep_otel.profiler.tier_test.trials import GIB, Observation, Status, TierResult, Trial

SILENCE: Final = 1e-4
"""Peak level below which a song is silent: -80 dBFS."""
_SECONDS_APART: Final = 0.04
"""One latent frame: the tolerance of a song's length."""


def asked_placement(device: str, trial: Trial) -> Placement:
    """The requested placement on a device: off CUDA no memory has to be saved."""
    return trial.placement if device.startswith("cuda") else Placement()


def config_facts(config: GPUConfig) -> dict[str, Any]:
    """A tier field by field, in the form that JSON returns."""
    facts = asdict(config)
    return {**facts, "lm_sizes": list(facts["lm_sizes"])}


def judge(trial: Trial, detected: dict[str, Any], finished: Finished) -> TierResult:
    """The row of a trial that a child process has finished.

    Args:
        trial: the requested trial.
        detected: the tier that the child detected, field by field.
        finished: its report.
    """
    seen = finished.observation
    notes = tuple(_notes(trial, seen))
    if finished.failure is not None:
        status: Status = "out_of_memory" if finished.out_of_memory else "failed"
        return TierResult(trial, status, finished.failure, seen, notes=notes)
    fault = next(_faults(trial, detected, seen), None)
    if fault is not None:
        return TierResult(trial, "failed", Failure(*fault, stage=None), seen, notes=notes)
    return TierResult(trial, "ok", None, seen, notes=notes)


def ended(trial: Trial, ending: Ending, stage: str | None) -> TierResult:
    """The row of a trial that its child process did not finish.

    Args:
        trial: the requested trial.
        ending: how the process ended.
        stage: its innermost open stage.
    """
    status: Status = "timeout" if ending.timed_out else "killed" if ending.exit_code < 0 else "failed"
    return TierResult(trial, status, ending.failure(stage), exit_code=ending.exit_code)


def skipped(trial: Trial, reason: str) -> TierResult:
    """The row of a trial that was not tried."""
    return TierResult(trial, "skipped", Failure("Skipped", reason, None))


def _faults(trial: Trial, detected: dict[str, Any], seen: Observation) -> Iterator[tuple[str, str]]:
    """Differences from the request, as the name of an error and its message; the most severe first."""
    expected = config_facts(gpu_config(float(trial.memory)))
    for name, value in expected.items():
        if detected.get(name) != value:
            yield "WrongTier", f"{trial.memory} GB: {name} is {detected.get(name)!r}, expected {value!r}"
    audio, done = seen.audio, seen.effective
    if audio is None or done is None:
        yield "NoSong", "the run succeeded but produced no song"
        return
    if audio.songs != trial.batch_size:
        yield "WrongBatch", f"{trial.batch_size} songs were requested, {audio.songs} made"
    if any(abs(duration - trial.duration) > _SECONDS_APART for duration in audio.durations):
        yield "WrongDuration", f"{trial.duration:g} s were requested, songs have {_listed(audio.durations)} s"
    if not audio.finite:
        yield "InvalidOutput", "the audio contains NaN or infinity"
    if audio.quietest < SILENCE:
        yield "SilentOutput", f"a song is silent: its peak is {audio.quietest:.1e}"
    if trial.lm_model is not None and audio.thought != trial.batch_size:
        yield "WrongSettings", f"the language model wrote codes for {audio.thought} of {trial.batch_size} songs"
    asked = {
        "lm_model": trial.lm_model,
        "steps": trial.inference_steps,
        "placement": asdict(asked_placement(seen.device, trial)),
    }
    for name, value in asked.items():
        if done[name] != value:
            yield "WrongSettings", f"{name} was {done[name]!r}, requested was {value!r}"
    if seen.cap_enforced and (seen.memory is None or seen.memory.peak > trial.limit):
        peak = "an unknown peak" if seen.memory is None else f"a peak of {seen.memory.peak / GIB:.2f} GiB"
        yield "LimitExceeded", f"{peak} on a card of {trial.memory} GiB"


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _notes(trial: Trial, seen: Observation) -> Iterator[str]:
    """Remarks on the run, as far as it ran."""
    if not trial.supported:
        yield f"XL models are not supported on {trial.tier}"
    done = seen.effective
    if done is not None:
        decoding, placement = done["vae_decode"], done["placement"]
        if decoding["rung"] == "cpu" and seen.device.startswith("cuda"):
            yield "VAE decoded on CPU"
        elif decoding["rung"] == "gpu+cpu buffer":
            yield f"Tiled VAE chunk={decoding['tile_length']}, audio buffered on CPU"
        elif decoding["tiles"] > trial.batch_size:
            yield f"Tiled VAE chunk={decoding['tile_length']}"
        if done["lm_backend"] is not None:
            yield f"{done['lm_backend']} backend"
        if placement["offload_to_cpu"]:
            yield "offload enabled (with DiT)" if placement["offload_dit_to_cpu"] else "offload enabled"
        elif seen.device.startswith("cuda"):
            yield "no offload"
        if placement["quantization"] is not None:
            yield str(placement["quantization"])
        elif not placement["offload_to_cpu"] and seen.device.startswith("cuda"):
            yield "full models on GPU"
        if placement["compile"]:
            yield "compiled"
    if not seen.device.startswith("cuda"):
        yield f"cap not enforced: {seen.device} has none"
    elif not seen.cap_enforced:
        yield "cap not enforced: the card is no larger"
