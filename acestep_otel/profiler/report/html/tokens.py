"""The work of the language model as charts: its phases, the gaps between its passes, and its pace over the run."""

from __future__ import annotations

from dataclasses import dataclass

from acestep_otel import semconv
from acestep_otel.profiler.report.html.charts import Part, column_chart, row_chart
from acestep_otel.profiler.report.html.figure import Figure, Table
from acestep_otel.profiler.report.html.quantities import duration, number
from acestep_otel.profiler.report.spans import FinishedSpan, Run
from acestep_otel.profiler.report.statistics import TokenStatistics, token_statistics


@dataclass(frozen=True, slots=True)
class TokenSection:
    """The work of the language model.

    Attributes:
        phases: each phase from its start to its end.
        gaps: time between decode passes; ``None`` when there were none.
        windows: phase, and its time per decode pass over the run; empty below detail level ``token``.
    """

    phases: Figure
    gaps: Figure | None
    windows: tuple[tuple[str, Figure], ...]


def token_section(run: Run) -> TokenSection | None:
    """The language model's phases, the gaps between its passes, and the windows of 64 passes if they were traced."""
    phases = token_statistics(run)
    return TokenSection(_phases(phases), _gaps(phases), _windows(run)) if phases else None


def _phases(phases: list[TokenStatistics]) -> Figure:
    return Figure(
        chart=row_chart(
            "Phases of the language model: "
            + "; ".join(f"{phase.phase} {duration(phase.duration)}" for phase in phases),
            [(phase.phase, _phase_parts(phase)) for phase in phases],
            duration,
            stacked=True,
        ),
        legend=(
            ("lm-grammar", "prompt"),
            ("condition", "to the first token"),
            ("lm", "decode"),
            ("other", "before and after"),
        ),
        table=Table(
            (
                "Phase", "Duration", "Prompt tokens", "Reused", "Sampled", "Forced", "Unconditional", "Forward passes",
                "Time to first token", "Prompt passes", "Decode", "Tokens per second", "Grammar", "Guidance",
            ),
            tuple(
                (
                    phase.phase,
                    duration(phase.duration),
                    number(phase.prompt_tokens),
                    number(phase.reused_tokens),
                    number(phase.sampled_tokens),
                    number(phase.forced_tokens),
                    number(phase.unconditional_tokens),
                    number(phase.forwards),
                    duration(phase.time_to_first_token),
                    duration(phase.prefill_duration),
                    duration(phase.decode_duration),
                    number(phase.tokens_per_second),
                    duration(phase.constrained_decoding_duration),
                    duration(phase.cfg_duration),
                )
                for phase in phases
            ),
        ),
    )  # fmt: skip


def _phase_parts(phase: TokenStatistics) -> list[Part]:
    first_token = phase.time_to_first_token or 0.0
    prompt = phase.prefill_duration or 0.0
    decode = phase.decode_duration or 0.0
    pieces = (
        (prompt, "lm-grammar", "prompt passes"),
        (first_token - prompt, "condition", "from the prompt to the first token"),
        (decode, "lm", "decode"),
        (phase.duration - max(first_token, prompt) - decode, "other", "the rest"),
    )
    return [
        Part(seconds, style, f"{phase.phase}, {name}: {duration(seconds)}")
        for seconds, style, name in pieces
        if seconds > 0
    ]


def _gaps(phases: list[TokenStatistics]) -> Figure | None:
    timed = [phase for phase in phases if phase.token_gap_p50 is not None]
    if not timed:
        return None
    levels = (("max", "gap-max"), ("p95", "gap-p95"), ("p50", "gap-p50"))
    found = [
        (phase.phase, [(name, style, float(getattr(phase, f"token_gap_{name}"))) for name, style in levels])
        for phase in timed
    ]
    return Figure(
        chart=row_chart(
            "Time between decode passes: "
            + "; ".join(f"{phase} median {duration(gaps[-1][2])}" for phase, gaps in found),
            [
                (phase, [Part(gap, style, f"{phase}, {name}: {duration(gap)}") for name, style, gap in gaps])
                for phase, gaps in found
            ],
            duration,
            stacked=False,
        ),
        legend=tuple((style, name) for name, style in reversed(levels)),
        table=Table(
            ("Phase", "Median", "95th percentile", "Longest"),
            tuple((phase, *(duration(gap) for _, _, gap in reversed(gaps))) for phase, gaps in found),
        ),
    )


def _windows(run: Run) -> tuple[tuple[str, Figure], ...]:
    phase_names = {span.span_id: semconv.stage_of(span.name) for span in run.spans}
    by_phase: dict[str, list[FinishedSpan]] = {}
    for window in run.named(semconv.LM_TOKENS):
        by_phase.setdefault(phase_names[window.parent_id or ""], []).append(window)
    return tuple((phase, _pace(windows)) for phase, windows in by_phase.items())


def _pace(windows: list[FinishedSpan]) -> Figure:
    paces = [
        (
            str(span.attributes[semconv.LM_WINDOW_FIRST]),
            int(span.attributes[semconv.LM_WINDOW_TOKENS]),
            span.seconds,
        )
        for span in windows
    ]
    return Figure(
        chart=column_chart(
            f"Time per decode pass in {len(paces)} windows",
            [
                (first, [Part(seconds / count, "lm", f"{count} passes from {first}: {duration(seconds / count)} each")])
                for first, count, seconds in paces
            ],
            duration,
        ),
        legend=(("lm", "time per decode pass, by the window's first pass"),),
        table=Table(
            ("First pass", "Passes", "Duration", "Per pass"),
            tuple(
                (first, number(count), duration(seconds), duration(seconds / count)) for first, count, seconds in paces
            ),
        ),
    )
