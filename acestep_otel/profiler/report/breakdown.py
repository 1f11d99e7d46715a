"""The time of one run, in rows that sum to its wall time.

The planner's total is the duration of ``acestep.lm``. Constrained decoding and guidance are attributes of that span;
token generation is the rest of it, so that the three sum to the total exactly. Time without a row of its own
(conditioning without the encoding of recordings, model loads inside the run, code between the stages) is ``other``, so
that the rows sum to the wall time exactly.

A share of the planner that no span states (guidance that was not calibrated, a grammar that was not timed) is ``None``
and part of token generation. A count of steps that no span states is ``None`` too: an unknown value is never zero.

Every view shows the same rows, in the order and with the names of the benchmark guide. Two rows precede them if a
recording was encoded before the language model read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from acestep_otel import semconv
from acestep_otel.profiler.report.spans import FinishedSpan, Run


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Seconds by component; a stage that did not run is 0.

    Attributes:
        wall: the root span.
        planner: all work of the language model, prompts and parsing included.
        constrained_decoding: the share of ``planner`` spent in the grammar; ``None`` when it was not timed.
        guidance: the share of ``planner`` that classifier-free guidance cost; ``None`` when it was not calibrated.
        diffusion: all denoising steps.
        steps: steps executed; ``None`` if the loop ran and neither it nor spans of steps state the number.
        vae_decode: latents to audio.
        audio_save: encoding and writing the files.
        vae_encode: recordings to latents, wherever in the run that happens.
        audio_tokenization: those latents to audio codes.
    """

    wall: float
    planner: float = 0.0
    constrained_decoding: float | None = 0.0
    guidance: float | None = 0.0
    diffusion: float = 0.0
    steps: int | None = 0
    vae_decode: float = 0.0
    audio_save: float = 0.0
    vae_encode: float = 0.0
    audio_tokenization: float = 0.0

    @property
    def token_generation(self) -> float:
        """The rest of ``planner``: forward passes, sampling, prompts and parsing."""
        return self.planner - (self.constrained_decoding or 0.0) - (self.guidance or 0.0)

    @property
    def step_average(self) -> float | None:
        """Seconds per step; ``None`` if no step ran, or the number is not known."""
        return self.diffusion / self.steps if self.steps else None

    @property
    def other(self) -> float:
        """The rest of ``wall``."""
        encoding = self.vae_encode + self.audio_tokenization
        return self.wall - self.planner - self.diffusion - self.vae_decode - self.audio_save - encoding

    def share(self, seconds: float) -> float:
        """Percentage of the wall time."""
        return 100 * seconds / self.wall if self.wall else 0.0

    @classmethod
    def of(cls, run: Run) -> Breakdown:
        """Reduce the spans of a run; works for a failed run too."""
        planner = run.named(semconv.LM)
        diffusion = run.named(semconv.DIT)
        return cls(
            wall=run.root.seconds,
            planner=_total(planner),
            constrained_decoding=_stated(planner, semconv.LM_CONSTRAINED_DECODING_DURATION),
            guidance=_stated(planner, semconv.LM_CFG_DURATION),
            diffusion=_total(diffusion),
            steps=_steps(diffusion, run.named(semconv.DIT_STEP)),
            vae_decode=_total(run.named(semconv.VAE_DECODE)),
            audio_save=_total(run.named(semconv.AUDIO_SAVE)),
            vae_encode=_total(run.named(semconv.VAE_ENCODE)),
            audio_tokenization=_total(run.named(semconv.AUDIO_TOKENIZE)),
        )


def _total(spans: list[FinishedSpan]) -> float:
    return sum(span.seconds for span in spans)


def _stated(planner: list[FinishedSpan], attribute: str) -> float | None:
    """Sum of an attribute; ``None`` when a span lacks it."""
    if any(attribute not in span.attributes for span in planner):
        return None
    return sum(float(span.attributes[attribute]) for span in planner)


def _steps(diffusion: list[FinishedSpan], steps: list[FinishedSpan]) -> int | None:
    """Steps executed: as each loop states, else as its spans show, for a loop that failed between two steps."""
    executed = 0
    for loop in diffusion:
        stated = loop.attributes.get(semconv.DIT_STEPS)
        count = sum(step.parent_id == loop.span_id for step in steps) if stated is None else int(stated)
        if stated is None and not count:
            return None
        executed += count
    return executed


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
"""Rows that the guide's table lacks, shown if a recording was encoded."""
_WITHOUT_SHARE: Final = frozenset({"step_average", "steps"})


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        component: the figure's name in ``Breakdown``.
        value: seconds, or the count of ``steps``; ``None`` for a figure that does not exist.
        percent: share of the wall time; ``None`` if it has no meaning.
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
        """Whether it is a part of the last row above it that is no child."""
        return self.component in _CHILDREN


def breakdown_rows(breakdown: Breakdown) -> Iterator[Row]:
    """Every row that the run has, the wall time last."""
    for component in _LABELS:
        value: float | None = getattr(breakdown, component)
        if component in _OPTIONAL and not value:
            continue
        shared = value is not None and component not in _WITHOUT_SHARE
        yield Row(component, value, breakdown.share(value) if shared and value is not None else None)
