"""Attributes of adapters and samplers, with the same meaning for every target."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from acestep_otel import semconv
from acestep_otel.patches.tolerant import readable
from acestep_otel.recording.trace_tree import Attributes


def adapter_attributes(adapters: Iterable[tuple[str, float]]) -> Attributes:
    """Names and scales of the adapters in use; nothing where there are none."""
    used = list(adapters)
    if not used:
        return {}
    return {
        semconv.ADAPTER_NAMES: ",".join(name for name, _ in used),
        semconv.ADAPTER_SCALES: ",".join(f"{scale:g}" for _, scale in used),
    }


def sampler_attributes(infer_method: Any, sampler_mode: Any, dcw_enabled: Any) -> Attributes:
    """The sampler, by the released package's names.

    Args:
        infer_method: ``ode`` or ``sde``.
        sampler_mode: ``euler`` or ``heun``; with ``sde`` the transformer is evaluated once per step whatever it says.
        dcw_enabled: whether the latents are corrected after each step.

    Each may be ``None`` if it is not known.
    """
    return readable(
        {
            semconv.DIT_INFER_METHOD: infer_method,
            semconv.DIT_SAMPLER_MODE: "euler" if infer_method == "sde" else sampler_mode,
            semconv.DIT_DCW: dcw_enabled,
        }
    )
