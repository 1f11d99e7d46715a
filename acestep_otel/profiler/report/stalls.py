"""The stalls of one run, as text."""

from __future__ import annotations

from collections.abc import Iterator

from acestep_otel import semconv
from acestep_otel.profiler.report.spans import FinishedSpan, Run


def stall_lines(run: Run) -> Iterator[str]:
    """One line for each stall, in order of time."""
    for span in run.spans:
        for event in span.events:
            if event.name == semconv.STALL_EVENT:
                known = event.attributes
                yield (
                    f"{_name(span)} took {span.seconds:.2f} s, {known[semconv.STALL_RATIO]:.0f} times the usual "
                    f"{known[semconv.STALL_USUAL]:.2f} s: {known[semconv.STALL_CAUSE]} "
                    f"({known[semconv.STALL_EVIDENCE]})"
                )


def _name(span: FinishedSpan) -> str:
    index = span.attributes.get(semconv.DIT_STEP_INDEX, span.attributes.get(semconv.VAE_TILE_INDEX))
    name = semconv.stage_of(span.name)
    return name if index is None else f"{name} {index}"
