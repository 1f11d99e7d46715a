"""Where the time of one run went, in rows that sum to its wall time.

The planner's total is the duration of ``acestep.lm``. Constrained decoding and guidance are attributes of that span;
token generation is what remains of it, so that the three sum to the total exactly. What lies under no row of its own
(conditioning, model loads inside the run, glue) is ``other``, so that the rows sum to the wall time exactly.

The cost of guidance is ``None`` when guidance ran but was not calibrated: it is then part of token generation.
"""

from __future__ import annotations

from dataclasses import dataclass

from acestep_otel import semconv
from acestep_otel.profiler.report.spans import FinishedSpan, Run


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Seconds by component; a stage that did not run is 0.

    Attributes:
        wall: the root span.
        planner: everything that the language model's side did.
        constrained_decoding: the share of ``planner`` spent in the grammar.
        guidance: the share of ``planner`` that classifier-free guidance cost; ``None`` when it was not calibrated.
        diffusion: all denoising steps.
        steps: steps executed.
        vae_decode: latents to audio.
        audio_save: encoding and writing the files.
        vae_encode: a recording to latents, where that is a stage of its own; inside conditioning it is ``other``.
        audio_tokenization: those latents to audio codes.
    """

    wall: float
    planner: float = 0.0
    constrained_decoding: float = 0.0
    guidance: float | None = 0.0
    diffusion: float = 0.0
    steps: int = 0
    vae_decode: float = 0.0
    audio_save: float = 0.0
    vae_encode: float = 0.0
    audio_tokenization: float = 0.0

    @property
    def token_generation(self) -> float:
        """The rest of ``planner``: forward passes, sampling, prompts and parsing."""
        return self.planner - self.constrained_decoding - (self.guidance or 0.0)

    @property
    def step_average(self) -> float | None:
        """Seconds per step; ``None`` when no step ran."""
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
        executed = sum(int(span.attributes.get(semconv.DIT_STEPS, 0)) for span in diffusion)
        return cls(
            wall=run.root.seconds,
            planner=_total(planner),
            constrained_decoding=sum(
                float(span.attributes.get(semconv.LM_CONSTRAINED_DECODING_DURATION, 0.0)) for span in planner
            ),
            guidance=_guidance(planner),
            diffusion=_total(diffusion),
            # A run that failed between two steps never got to say how many it executed.
            steps=executed or len(run.named(semconv.DIT_STEP)),
            vae_decode=_total(run.named(semconv.VAE_DECODE)),
            audio_save=_total(run.named(semconv.AUDIO_SAVE)),
            vae_encode=_total([span for span in run.named(semconv.VAE_ENCODE) if span.parent_id == run.root.span_id]),
            audio_tokenization=_total(run.named(semconv.AUDIO_TOKENIZE)),
        )


def _total(spans: list[FinishedSpan]) -> float:
    return sum(span.seconds for span in spans)


def _guidance(planner: list[FinishedSpan]) -> float | None:
    if any(semconv.LM_CFG_DURATION not in span.attributes for span in planner):
        return None
    return sum(float(span.attributes[semconv.LM_CFG_DURATION]) for span in planner)
