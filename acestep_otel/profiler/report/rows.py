"""The rows of the time breakdown, in the order and with the names of the benchmark guide; every view draws these.

Two rows of our own precede them where a recording was encoded before the language model read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from acestep_otel.profiler.report.breakdown import Breakdown

Component = Literal[
    "vae_encode", "audio_tokenization", "planner", "token_generation", "constrained_decoding", "guidance", "diffusion",
    "step_average", "steps", "vae_decode", "audio_save", "other", "wall",
]  # fmt: skip

_LABELS: Final[dict[Component, str]] = {
    "vae_encode": "VAE Encode",
    "audio_tokenization": "Audio Tokenizer",
    "planner": "LLM Planning (total)",
    "token_generation": "Token generation",
    "constrained_decoding": "Constrained decoding",
    "guidance": "CFG overhead",
    "diffusion": "DiT Diffusion (total)",
    "step_average": "Per-step average",
    "steps": "Steps",
    "vae_decode": "VAE Decode",
    "audio_save": "Audio Save",
    "other": "Other / Overhead",
    "wall": "Wall Time (total)",
}
_CHILDREN: Final = frozenset({"token_generation", "constrained_decoding", "guidance", "step_average", "steps"})
_OPTIONAL: Final = frozenset({"vae_encode", "audio_tokenization"})
"""Rows that the guide's table lacks: they are there when a recording was heard."""
_WITHOUT_SHARE: Final = frozenset({"step_average", "steps"})


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        component: the figure's name in ``Breakdown``.
        value: seconds, or the count of ``steps``; ``None`` for a figure that does not exist.
        percent: share of the wall time; ``None`` where there is none to speak of.
    """

    component: Component
    value: float | None
    percent: float | None

    @property
    def label(self) -> str:
        """Its name in the guide."""
        return _LABELS[self.component]

    @property
    def is_child(self) -> bool:
        """Whether it belongs to the row above it that does not."""
        return self.component in _CHILDREN


def breakdown_rows(breakdown: Breakdown) -> Iterator[Row]:
    """Every row that the run has, the wall time last."""
    for component in _LABELS:
        value: float | None = getattr(breakdown, component)
        if component in _OPTIONAL and not value:
            continue
        shared = value is not None and component not in _WITHOUT_SHARE
        yield Row(component, value, breakdown.share(value) if shared and value is not None else None)
