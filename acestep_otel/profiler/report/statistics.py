"""Figures of one run beside its breakdown: tokens, steps, tiles, memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from acestep_otel import semconv
from acestep_otel.profiler.report.spans import FinishedSpan, Run

_PHASES: Final = (semconv.LM_COT, semconv.LM_CODES, semconv.LM_LYRICS)


def step_times(run: Run) -> list[float]:
    """Seconds of every denoising step, in order; empty below detail level ``step``."""
    return [span.seconds for span in run.named(semconv.DIT_STEP)]


def tile_times(run: Run) -> list[float]:
    """Seconds of every VAE tile, in order; empty below detail level ``step``."""
    return [span.seconds for span in run.named(semconv.VAE_TILE)]


@dataclass(frozen=True, slots=True)
class TokenStatistics:
    """Figures of one planner phase. Durations are seconds; ``None`` means that the span does not state them.

    Attributes:
        phase: ``lm.cot``, ``lm.codes`` or ``lm.lyrics``.
        duration: of the phase.
        prompt_tokens: of the conditional prompts.
        reused_tokens: of those, the tokens that an earlier phase had processed.
        output_tokens: over all songs, sampled and forced.
        sampled_tokens: tokens that were sampled among several.
        forced_tokens: tokens where the grammar allowed only one.
        unconditional_tokens: prompt and output of the unconditional rows.
        forwards: forward passes.
        time_to_first_token: from the start of the phase.
        prefill_duration: forward passes over the prompts.
        decode_duration: from the first sampled token to the last.
        tokens_per_second: sampled tokens after the first, over the decode duration.
        token_gap_p50: median time between decode passes.
        token_gap_p95: 95th percentile of the same.
        token_gap_max: longest of the same.
        token_gap_max_index: decode pass at the end of the longest gap.
        constrained_decoding_duration: host time in the grammar.
        cfg_duration: cost of guidance, by calibration.
    """

    phase: str
    duration: float
    prompt_tokens: int | None
    reused_tokens: int | None
    output_tokens: int | None
    sampled_tokens: int | None
    forced_tokens: int | None
    unconditional_tokens: int | None
    forwards: int | None
    time_to_first_token: float | None
    prefill_duration: float | None
    decode_duration: float | None
    tokens_per_second: float | None
    token_gap_p50: float | None
    token_gap_p95: float | None
    token_gap_max: float | None
    token_gap_max_index: int | None
    constrained_decoding_duration: float | None
    cfg_duration: float | None

    @property
    def forced_share(self) -> float | None:
        """Share of the output tokens that the grammar forced; ``None`` without output."""
        return (
            self.forced_tokens / self.output_tokens if self.output_tokens and self.forced_tokens is not None else None
        )

    @property
    def prefill_tokens_per_second(self) -> float | None:
        """Processed tokens of the conditional prompt, over the duration of the passes over the prompts.

        ``None`` also if the number of reused tokens is not known.
        """
        if self.prompt_tokens is None or self.reused_tokens is None or not self.prefill_duration:
            return None
        return (self.prompt_tokens - self.reused_tokens) / self.prefill_duration

    @property
    def output_tokens_per_second(self) -> float | None:
        """Tokens written, forced ones included, over the whole phase."""
        return self.output_tokens / self.duration if self.output_tokens is not None and self.duration else None

    @classmethod
    def of(cls, phase: FinishedSpan) -> TokenStatistics:
        """Read the attributes of a phase's span."""
        attributes = {name: phase.attributes.get(source) for name, source in _ATTRIBUTE_OF_FIELD.items()}
        return cls(phase=semconv.stage_of(phase.name), duration=phase.seconds, **attributes)


_ATTRIBUTE_OF_FIELD: Final = {
    "prompt_tokens": semconv.USAGE_INPUT_TOKENS,
    "reused_tokens": semconv.USAGE_CACHE_READ_INPUT_TOKENS,
    "output_tokens": semconv.USAGE_OUTPUT_TOKENS,
    "sampled_tokens": semconv.LM_SAMPLED_TOKENS,
    "forced_tokens": semconv.LM_FORCED_TOKENS,
    "unconditional_tokens": semconv.LM_UNCONDITIONAL_TOKENS,
    "forwards": semconv.LM_FORWARDS,
    "time_to_first_token": semconv.LM_TIME_TO_FIRST_TOKEN,
    "prefill_duration": semconv.LM_PREFILL_DURATION,
    "decode_duration": semconv.LM_DECODE_DURATION,
    "tokens_per_second": semconv.LM_TOKENS_PER_SECOND,
    "token_gap_p50": semconv.LM_TOKEN_GAP_P50,
    "token_gap_p95": semconv.LM_TOKEN_GAP_P95,
    "token_gap_max": semconv.LM_TOKEN_GAP_MAX,
    "token_gap_max_index": semconv.LM_TOKEN_GAP_MAX_INDEX,
    "constrained_decoding_duration": semconv.LM_CONSTRAINED_DECODING_DURATION,
    "cfg_duration": semconv.LM_CFG_DURATION,
}


def planner_phases(run: Run) -> list[FinishedSpan]:
    """Spans of the planner phases that ran, in order."""
    return [span for span in run.spans if span.name in _PHASES]


def token_statistics(run: Run) -> list[TokenStatistics]:
    """One entry per planner phase that ran, in order."""
    return [TokenStatistics.of(span) for span in planner_phases(run)]


@dataclass(frozen=True, slots=True)
class MemoryPeak:
    """Highest VRAM use during one stage, in bytes.

    Attributes:
        stage: for example ``vae.decode``; ``generate_music`` for the whole run.
        allocated: in live tensors.
        reserved: held by the allocator.
        device: device of the memory, if it is not the run's: a language model may have a card of its own.
    """

    stage: str
    allocated: int
    reserved: int
    device: str | None = None

    @property
    def label(self) -> str:
        """The stage, with the device if that is not the run's."""
        return self.stage if self.device is None else f"{self.stage} ({self.device})"


def peak_by_device(run: Run) -> dict[str, MemoryPeak]:
    """The stage with the highest peak on each device; empty off CUDA."""
    own = str(run.root.attributes.get(semconv.DEVICE, ""))
    highest: dict[str, MemoryPeak] = {}
    for peak in memory_peaks(run):
        device = peak.device or own
        if device not in highest or peak.reserved > highest[device].reserved:
            highest[device] = peak
    return highest


def memory_peaks(run: Run) -> list[MemoryPeak]:
    """One entry per stage that recorded a peak; empty off CUDA."""
    return [
        MemoryPeak(
            stage=semconv.stage_of(span.name),
            allocated=int(span.attributes[semconv.VRAM_PEAK_ALLOCATED]),
            reserved=int(span.attributes[semconv.VRAM_PEAK_RESERVED]),
            device=None if span is run.root else span.attributes.get(semconv.DEVICE),
        )
        for span in (run.root, *run.spans)
        if semconv.VRAM_PEAK_ALLOCATED in span.attributes
    ]


@dataclass(frozen=True, slots=True)
class MemorySample:
    """VRAM in use when a stage had ended (at detail ``token`` also a step or a tile), in bytes.

    Attributes:
        stage: the stage that had ended, for example ``dit.step``.
        time: seconds since the run started.
        allocated: in live tensors.
        reserved: held by the allocator.
    """

    stage: str
    time: float
    allocated: int
    reserved: int


def memory_samples(run: Run) -> list[MemorySample]:
    """All readings, in order of time; empty off CUDA."""
    # A stage ends after the stages inside it, even if both ends have the same time.
    spans = sorted((run.root, *run.spans), key=lambda span: (span.end_ns, -span.start_ns))
    return [
        MemorySample(
            stage=semconv.stage_of(span.name),
            time=(span.end_ns - run.root.start_ns) / 1e9,
            allocated=int(span.attributes[semconv.VRAM_ALLOCATED]),
            reserved=int(span.attributes[semconv.VRAM_RESERVED]),
        )
        for span in spans
        if semconv.VRAM_ALLOCATED in span.attributes
    ]
