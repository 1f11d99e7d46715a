"""The rows of a tier test: the peak of each against the memory of its card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from acestep_otel.profiler.report.html.charts import Part, row_chart
from acestep_otel.profiler.report.html.figure import Figure, Table
from acestep_otel.profiler.report.html.quantities import ABSENT, duration, size
from acestep_otel.profiler.tier_test.trials import GIB, TierResult

_COLUMNS: Final = (
    "Row", "Tier", "LM", "Status", "Peak", "Limit", "Reserved", "Allocated", "Driver", "Wall", "Notes",
)  # fmt: skip


def tier_section(results: Sequence[TierResult]) -> Figure | None:
    """A chart of every row that was run, and the figures of all; ``None`` without rows.

    Without readings of memory there is nothing to compare with the cards, and no chart.
    """
    if not results:
        return None
    if all(result.peak is None for result in results):
        return Figure(None, (), Table(_COLUMNS, tuple(map(_figures, results))))
    tried = [result for result in results if result.tried]
    passed = sum(result.passed for result in tried)
    return Figure(
        chart=row_chart(
            f"Peak memory against the card's: {passed} of {len(tried)} rows passed",
            [(_label(result) if result.passed else f"✗ {_label(result)}", list(_parts(result))) for result in tried],
            size,
            stacked=False,
            unit=GIB,
        ),
        legend=(
            ("card-size", "memory of the card"),
            ("process-peak", "peak of the process"),
            ("process-over", "peak of a row that did not pass"),
            ("vram-allocated", "of that, in tensors"),
        ),
        table=Table(_COLUMNS, tuple(map(_figures, results))),
    )


def tier_caution(results: Sequence[TierResult]) -> str | None:
    """Why rows are no evidence; ``None`` if the memory of every process was limited to that of its card."""
    seen = [result for result in results if result.observation is not None]
    uncapped = sum(not result.capped for result in seen)
    if not uncapped:
        return None
    return f"No limit was enforced in {uncapped} of {len(seen)} rows: they show what runs, not what fits."


def _label(result: TierResult) -> str:
    return f"{result.trial.memory} GB {result.trial.variant}"


def _parts(result: TierResult) -> Iterator[Part]:
    label, status = _label(result), result.status.replace("_", " ")
    yield Part(result.trial.limit, "card-size", f"{label}: {status}, card of {size(result.trial.limit)}")
    memory = None if result.observation is None else result.observation.memory
    if memory is not None:
        style = "process-peak" if result.passed else "process-over"
        yield Part(memory.peak, style, f"{label}: {status}, peak {size(memory.peak)}")
        yield Part(memory.allocated, "vram-allocated", f"{label}: allocated {size(memory.allocated)}")


def _figures(result: TierResult) -> tuple[str, ...]:
    seen = result.observation
    memory = None if seen is None else seen.memory
    figures = None if seen is None else seen.figures
    card = () if result.card is None else (result.card.label,)
    reason = () if result.failure is None else (result.failure.message,)
    return (
        _label(result),
        result.trial.tier,
        result.trial.lm_size or ABSENT,
        result.status.replace("_", " "),
        size(result.peak),
        size(result.trial.limit),
        size(None if memory is None else memory.reserved),
        size(None if memory is None else memory.allocated),
        size(None if memory is None else memory.driver),
        duration(None if figures is None else figures.wall_time),
        ", ".join((*card, *reason, *result.notes)),
    )
