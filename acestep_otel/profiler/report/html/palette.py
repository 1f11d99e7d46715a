"""Which colour a span has: one class of the style sheet for each stage, the same in every chart."""

from __future__ import annotations

from typing import Final

from acestep_otel import semconv
from acestep_otel.profiler.report.rows import Component

OTHER: Final = "other"

_STAGES: Final = frozenset({"model", "lm", "condition", "dit", "vae", "audio"})

COMPONENTS: Final[dict[Component, str]] = {
    "vae_encode": "vae",
    "audio_tokenization": "audio",
    "token_generation": "lm",
    "constrained_decoding": "lm-grammar",
    "guidance": "lm-guidance",
    "diffusion": "dit",
    "vae_decode": "vae",
    "audio_save": "audio",
    "other": OTHER,
}
"""Of the rows that together make up the wall time, in their order."""


def colour_of(span_name: str) -> str:
    """Class of a span; roots and spans of the calling application are grey."""
    family = semconv.stage_of(span_name).partition(".")[0]
    return family if family in _STAGES else OTHER
