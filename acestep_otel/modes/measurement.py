"""One measured call of the engine: loaded, warmed up, run, reported.

Everything reported is computed from the spans of the measured run, also when it failed.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import click
import torch

from acestep.devices import resolve_device
from acestep.errors import (
    AudioWriteError,
    BackendUnavailable,
    CheckpointInvalid,
    CheckpointNotFound,
    DeviceUnavailable,
    DownloadFailed,
    InvalidRequest,
    PlacementUnavailable,
)
from acestep.memory_cap import enforce_memory_cap
from acestep.types import EffectivePlannerSettings, EffectiveSettings, ProgressCallback, SongBlueprint
from acestep_otel.errors import SetupError
from acestep_otel.files import require_writable
from acestep_otel.flags import in_flags, message_of
from acestep_otel.modes.examination import examination_files, examine
from acestep_otel.modes.figures import record_figures
from acestep_otel.modes.options import Options
from acestep_otel.modes.placement import engine_settings
from acestep_otel.modes.progress import ProgressBars
from acestep_otel.modes.tracing import detail_level, instrumented, settle
from acestep_otel.providers import Telemetry
from acestep_otel.recording import warmup
from acestep_otel.report.breakdown import Breakdown
from acestep_otel.report.environment import Environment
from acestep_otel.report.html import Report, write_report
from acestep_otel.report.results import RunResult, result_document, write_result
from acestep_otel.report.spans import Run, measured_runs
from acestep_otel.report.statistics import token_statistics
from acestep_otel.report.terminal import render_breakdown
from acestep_otel.report.token_table import render_token_statistics

Loaded = TypeVar("Loaded")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a measured run made.

    Attributes:
        effective: what was really run.
        summary: lines for the terminal, above the breakdown.
        songs: the files written.
        blueprint: the song in words.
    """

    effective: EffectiveSettings | EffectivePlannerSettings
    summary: tuple[str, ...]
    songs: tuple[Path, ...] = ()
    blueprint: SongBlueprint | None = None


class Job(Protocol[Loaded]):
    """What a mode measures."""

    @property
    def root(self) -> str:
        """Name of the root span of its call (``acestep_otel.semconv``)."""

    def load(self) -> Loaded:
        """Load the models."""

    def rehearse(self, models: Loaded, progress: ProgressCallback) -> None:
        """Run once what is measured, leaving no files."""

    def calibrate(self, models: Loaded) -> None:
        """Measure beside the run what cannot be measured in it; forward passes, so only after a warm-up."""

    def run(self, models: Loaded, progress: ProgressCallback) -> Outcome:
        """Run what is measured."""


def measure(options: Options, telemetry: Telemetry, job: Job[Loaded]) -> None:
    """Run a job: the breakdown goes to standard output, files go where the options say.

    Raises:
        SetupError: something the user gave cannot be used; nothing was run.
        AceStepError: the run failed; what was measured until then is printed and written.
        OSError: the result or the trace could not be written.
    """
    detail = detail_level(options.detail)
    for path in (options.benchmark_output, options.report, options.trace_output, *examination_files(options)):
        if path is not None:
            require_writable(path)

    limit_threads(options)
    with instrumented(telemetry, detail):
        with setup_errors():
            enforce_memory_cap(resolve_device(options.device), engine_settings().memory_limit)
            models = job.load()
        outcome: Outcome | None = None
        error: BaseException | None = None
        try:
            if not options.no_warmup:
                with warmup(), ProgressBars("warm-up", enabled=not options.no_progress) as progress:
                    job.rehearse(models, progress)
                job.calibrate(models)
            with ProgressBars(options.mode, enabled=not options.no_progress) as progress:
                outcome = job.run(models, progress)
        except BaseException as raised:
            error = raised
            raise
        finally:
            _report(options, telemetry, job.root, outcome, error)
    # After the block: nothing is traced any more, and nothing that is reported is measured in here.
    with ProgressBars("examination", enabled=not options.no_progress) as progress:
        examine(options, lambda: job.rehearse(models, progress))


@contextmanager
def setup_errors() -> Iterator[None]:
    """Before the run, what the engine refuses is a matter of set-up."""
    try:
        yield
    except (
        InvalidRequest,
        AudioWriteError,
        CheckpointNotFound,
        CheckpointInvalid,
        DownloadFailed,
        DeviceUnavailable,
        PlacementUnavailable,
        BackendUnavailable,
    ) as error:
        raise SetupError(in_flags(error)) from error


def limit_threads(options: Options) -> None:
    """Run tiny models on one thread: handing such small tensors to a second one takes longer than computing them."""
    if options.tiny:
        torch.set_num_threads(1)


def release_memory() -> None:
    """Give back what an earlier run left, so that the next one starts with what the first one had."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _report(
    options: Options, telemetry: Telemetry, root: str, outcome: Outcome | None, error: BaseException | None
) -> None:
    settle()
    measured = measured_runs(telemetry.collector.finished_spans, root)
    run = measured[-1] if measured else None
    if run is not None and error is None:
        record_figures(run, telemetry)
    for line in _lines(options, outcome, run):
        click.echo(line)
    songs = outcome.songs if outcome is not None else ()
    environment = Environment.current()
    if options.benchmark_output is not None:
        entry = RunResult(
            run=run,
            effective=None if outcome is None else outcome.effective,
            error=error,
            songs=songs,
            blueprint=None if outcome is None else outcome.blueprint,
        )
        write_result(
            options.benchmark_output,
            result_document(mode=options.mode, environment=environment, arguments=asdict(options), results=[entry]),
        )
    if options.report is not None:
        write_report(
            options.report,
            Report(
                mode=options.mode,
                environment=environment,
                arguments=asdict(options),
                runs=measured[-1:],
                failure=None if error is None else f"{type(error).__name__}: {message_of(error)}",
            ),
        )
    telemetry.write_trace_file()
    files = (("Result", options.benchmark_output), ("Report", options.report), ("Trace", options.trace_output))
    for label, path in (*(("Song", song) for song in songs), *files):
        if path is not None:
            click.echo(f"{label + ':':<8} {path}")


def _lines(options: Options, outcome: Outcome | None, run: Run | None) -> Iterator[str]:
    if outcome is not None:
        yield from outcome.summary
        yield ""
    if run is not None:
        yield render_breakdown(Breakdown.of(run))
        yield ""
        if options.llm_debug:
            yield render_token_statistics(token_statistics(run))
            yield ""
    elif outcome is not None:
        yield "Tracing was off, so there is no breakdown."
        yield ""
