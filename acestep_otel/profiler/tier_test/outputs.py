"""Outputs of a tier test: tables, result file, page and metrics, all from its rows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from acestep.gpu_config import GPU_CONFIGS
from acestep_otel import semconv
from acestep_otel.profiler.options import Options, shown_options
from acestep_otel.profiler.report import results
from acestep_otel.profiler.report.environment import Environment
from acestep_otel.profiler.report.html import Report, write_report
from acestep_otel.profiler.tier_test.boundary import BatchBoundary, Capability, batch_boundary, boundary
from acestep_otel.profiler.tier_test.boundary_metrics import record_batch_boundary, record_boundary
from acestep_otel.profiler.tier_test.plan import Plan, trial_attributes
from acestep_otel.profiler.tier_test.table import render_batch_boundary, render_boundary, render_tiers
from acestep_otel.profiler.tier_test.trials import TierResult
from acestep_otel.recording.instruments import Instruments

CONFIGURED_BATCHES: Final[Mapping[str, tuple[int, int]]] = {
    config.tier: (config.without_lm.batch_size, config.with_lm.batch_size) for config in GPU_CONFIGS
}
"""The tiers' own limits, without and with a language model."""


def decisive_failure(rows: Sequence[TierResult]) -> str | None:
    """A line with the number of tiers that fail with their own settings; ``None`` if there is none."""
    decisive = [result for result in rows if result.trial.decides and result.tried]
    failed = sum(not result.passed for result in decisive)
    return f"{failed} of {len(decisive)} runs by a tier's own settings failed" if failed else None


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs of one tier test.

    Attributes:
        options: of the command line.
        plan: plan of the rows.
    """

    options: Options
    plan: Plan

    def lines(self, rows: Sequence[TierResult]) -> Iterator[str]:
        """The tables, and below them every failure in full."""
        yield f"\n{render_tiers(rows)}\n"
        if (capabilities := self._boundary(rows)) is not None:
            yield f"{render_boundary(capabilities)}\n"
        if (cards := self._batch_boundary(rows)) is not None:
            yield f"{render_batch_boundary(cards)}\n"
        for result in rows:
            if result.tried and result.failure is not None:
                where = f" in {result.failure.stage}" if result.failure.stage else ""
                yield f"{result.trial}: {result.failure.type}{where}: {result.failure.message}"
        if len(rows) < len(self.plan.rows):
            yield f"Stopped after {len(rows)} of {len(self.plan.rows)} rows."

    def write_result(self, rows: Sequence[TierResult], environment: Environment) -> None:
        """Write the result file, if one was requested.

        Raises:
            OSError: it could not be written; the previous file is unchanged.
        """
        if self.options.benchmark_output is None:
            return
        capabilities, cards = self._boundary(rows), self._batch_boundary(rows)
        document = results.result_document(
            mode=self.options.mode,
            environment=environment,
            arguments=shown_options(self.options),
            results=rows,
            tier_test={
                "rows": len(self.plan.rows),
                "boundary": None if capabilities is None else [capability.to_json() for capability in capabilities],
                "batch_boundary": None if cards is None else [card.to_json() for card in cards],
            },
        )
        results.write_result(self.options.benchmark_output, document)

    def write_page(self, rows: Sequence[TierResult], environment: Environment) -> None:
        """Write the HTML page, if one was requested.

        Raises:
            OSError: it could not be written; the previous file is unchanged.
        """
        if self.options.report is None:
            return
        report = Report(
            mode=self.options.mode,
            environment=environment,
            arguments=shown_options(self.options),
            tiers=rows,
            failure=decisive_failure(rows),
        )
        write_report(self.options.report, report)

    def record_boundaries(self, instruments: Instruments, rows: Sequence[TierResult]) -> None:
        """Record the requested boundaries."""
        record_boundary(instruments, self._boundary(rows) or ())
        record_batch_boundary(instruments, self._batch_boundary(rows) or ())

    def _boundary(self, rows: Sequence[TierResult]) -> Sequence[Capability] | None:
        return boundary(rows) if self.options.tier_boundary else None

    def _batch_boundary(self, rows: Sequence[TierResult]) -> Sequence[BatchBoundary] | None:
        return batch_boundary(rows, CONFIGURED_BATCHES) if self.options.tier_batch_boundary else None


def record_row(instruments: Instruments, result: TierResult) -> None:
    """Record a row's metrics; a row that was not tried has none."""
    if not result.tried:
        return
    trial, seen = result.trial, result.observation
    attributes = {
        **trial_attributes(trial),
        semconv.AUDIO_DURATION_REQUESTED: trial.duration,
        semconv.BATCH_SIZE: trial.batch_size,
    }
    instruments.record(semconv.TIER_STATUS, int(result.passed), attributes)
    instruments.record(semconv.RUN_TIME, time.time(), {semconv.MODE: "tier-test"})
    instruments.record(semconv.TIER_LIMIT, trial.limit, attributes)
    if seen is not None and seen.figures is not None:
        instruments.record(semconv.TIER_WALL, seen.figures.wall_time, attributes)
    if seen is not None and (memory := seen.memory) is not None:
        kinds = (("allocated", memory.allocated), ("reserved", memory.reserved), ("process", memory.peak))
        for kind, peak in kinds:
            instruments.record(semconv.TIER_PEAK, peak, {**attributes, semconv.VRAM_KIND: kind})
