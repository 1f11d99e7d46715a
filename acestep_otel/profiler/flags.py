"""The engine's errors with the names of the command line: fields of the API become options."""

from __future__ import annotations

import re
from typing import Final

from acestep.environment_variables import COMPILE_MODEL
from acestep.errors import FIELD, AceStepError, CheckpointNotFound
from acestep_otel.profiler.options import DEFAULTS

_NAMED_OTHERWISE: Final = {
    "adapters": "--lora",
    "checkpoint_root": "--checkpoint-dir",
    "compile": COMPILE_MODEL,
    "dit": "--config-path",
    "fetch": "--download",
    "lm": "--lm-model",
    "sampling.guidance_scale": "--lm-cfg-scale",
    "sampling.temperature": "--lm-temperature",
    "sampling.top_k": "--lm-top-k",
    "sampling.top_p": "--lm-top-p",
    "sampler.infer_method": "--infer-method",
    "sampler.sampler_mode": "--sampler-mode",
    "sampler.dcw_mode": "--dcw-mode",
    "sampler.dcw_scaler": "--dcw-scaler",
    "sampler.dcw_high_scaler": "--dcw-high-scaler",
    "seeds": "--seed",
    "track_names": "--track",
}
"""Fields whose option, or environment variable, has another name."""


def in_flags(error: AceStepError) -> str:
    """The message of an error of the engine, with the command line's names and solutions.

    A field that has no option keeps its name.
    """
    if isinstance(error, CheckpointNotFound) and error.model is not None:
        return f"{_renamed(error.looked_for)}. {_ways_out(error.model)}"
    return _renamed(str(error))


def message_of(error: BaseException) -> str:
    """The message of any error, as a user of the command line reads it."""
    return in_flags(error) if isinstance(error, AceStepError) else str(error)


def _renamed(message: str) -> str:
    return FIELD.sub(_option, message)


def _option(field: re.Match[str]) -> str:
    name = field[1]
    if name in _NAMED_OTHERWISE:
        return _NAMED_OTHERWISE[name]
    return f"--{name.replace('_', '-')}" if hasattr(DEFAULTS, name) else name


def _ways_out(model: str) -> str:
    return (
        "To resolve this, set --checkpoint-dir to the folder that contains them; download them with "
        f"`acestep-otel download {model}`, or in this run with --download; use random weights of the same architecture "
        "with --weights synthetic (real speed and memory, noise as audio); or use the tiny built-in models with --tiny"
    )
