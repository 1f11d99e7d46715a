"""Spans of made-up runs, with times that the tests choose."""

from __future__ import annotations

from itertools import count
from typing import Any

from acestep_otel import semconv
from acestep_otel.profiler.report.spans import FinishedSpan, Run, runs

EPOCH_NS = 1_700_000_000_000_000_000
_ids = count(1)


def span(
    name: str,
    start: float,
    duration: float,
    parent: FinishedSpan | None = None,
    attributes: dict[str, Any] | None = None,
    **fields: Any,
) -> FinishedSpan:
    """A span that starts ``start`` seconds after the epoch of these tests."""
    start_ns = EPOCH_NS + round(start * 1e9)
    return FinishedSpan(
        name=name,
        span_id=f"{next(_ids):016x}",
        parent_id=None if parent is None else parent.span_id,
        trace_id=f"{next(_ids):032x}" if parent is None else parent.trace_id,
        start_ns=start_ns,
        end_ns=start_ns + round(duration * 1e9),
        attributes=attributes or {},
        **fields,
    )


def run_of(spans: list[FinishedSpan], root: str = semconv.GENERATE_MUSIC) -> Run:
    (run,) = runs(spans, root)
    return run


def guide_spans() -> list[FinishedSpan]:
    """The run whose table the benchmark guide shows; the third decimal makes its percentages come out."""
    root = span(semconv.GENERATE_MUSIC, 0, 6.429)
    planner = span(
        semconv.LM,
        0.1,
        2.909,
        root,
        {
            semconv.LM_CONSTRAINED_DECODING_DURATION: 0.31,
            semconv.LM_CFG_DURATION: 0.149,
            semconv.LM_TOKEN_GENERATION_DURATION: 2.45,
        },
    )
    dit = span(semconv.DIT, 3.5, 1.89, root, {semconv.DIT_STEPS: 8})
    steps = [
        span(semconv.DIT_STEP, 3.5 + 0.23 * index, 0.22 + index / 1000, dit, {semconv.DIT_STEP_INDEX: index})
        for index in range(8)
    ]
    vae = span(semconv.VAE_DECODE, 5.4, 0.52, root)
    tiles = [span(semconv.VAE_TILE, 5.4 + 0.2 * index, 0.2, vae) for index in range(2)]
    return [
        root,
        planner,
        span(
            semconv.LM_COT,
            0.1,
            0.5,
            planner,
            {
                semconv.USAGE_INPUT_TOKENS: 120,
                semconv.USAGE_OUTPUT_TOKENS: 40,
                semconv.LM_FORCED_TOKENS: 10,
                semconv.LM_TOKENS_PER_SECOND: 88.5,
            },
        ),
        span(semconv.LM_CODES, 0.6, 2.4, planner, {semconv.USAGE_OUTPUT_TOKENS: 150, semconv.LM_CFG_DURATION: 0.149}),
        span(semconv.CONDITION, 3.1, 0.3, root),
        dit,
        *steps,
        vae,
        *tiles,
        span(semconv.AUDIO_SAVE, 6.0, 0.12, root),
    ]
