"""One measured run: set-up, warm-up, the run, and every output made from it.

Everything reported is computed from the spans of the measured run, also when it failed.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

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
from acestep_otel import __version__, semconv
from acestep_otel.errors import SetupError
from acestep_otel.profiler.flags import in_flags, message_of
from acestep_otel.profiler.options import Options, command_line, shown_options
from acestep_otel.profiler.report.breakdown import Breakdown, breakdown_rows
from acestep_otel.profiler.report.energy import RunEnergy, render_energy
from acestep_otel.profiler.report.environment import Environment
from acestep_otel.profiler.report.html import Report, write_report
from acestep_otel.profiler.report.results import RunResult, result_document, write_result
from acestep_otel.profiler.report.spans import Preparation, Run, measured_runs
from acestep_otel.profiler.report.stage_work import RunWork
from acestep_otel.profiler.report.stalls import stall_lines
from acestep_otel.profiler.report.statistics import TokenStatistics, peak_by_device, planner_phases, token_statistics
from acestep_otel.profiler.report.terminal import render_breakdown, render_peaks, render_token_statistics
from acestep_otel.profiler.report.work_table import render_work
from acestep_otel.profiler.run.outputs import require_outputs, write_outputs
from acestep_otel.profiler.run.placement import engine_settings
from acestep_otel.profiler.run.profilers import operator_trace, profiler_files, run_profilers
from acestep_otel.profiler.run.progress import ProgressBars, loading
from acestep_otel.profiler.telemetry.providers import Telemetry, detail_level, flush_telemetry, instrumented
from acestep_otel.recording import GuidanceShare, annotated, guidance_share, warmup
from acestep_otel.recording.instruments import Instruments


def record_figures(run: Run, telemetry: Telemetry) -> None:
    """Record the breakdown and the pace of each planner phase.

    Args:
        run: the measured run; the models that its spans name are the metrics' own.
        telemetry: whose meter takes them.
    """
    instruments = Instruments(telemetry.meter_provider.get_meter("acestep_otel", __version__))
    model = {semconv.REQUEST_MODEL: str(run.root.attributes.get(semconv.REQUEST_MODEL, ""))}
    root = {**model, semconv.STAGE: semconv.stage_of(run.root.name)}
    for row in breakdown_rows(Breakdown.of(run)):
        if row.value is None:
            continue
        if row.component == "steps":
            instruments.record(semconv.PROFILE_STEPS, row.value, root)
        else:
            instruments.record(semconv.PROFILE_DURATION, row.value, {**root, semconv.PROFILE_ROW: row.component})
    for span in planner_phases(run):
        phase = TokenStatistics.of(span)
        if rate := phase.output_tokens_per_second:
            # The name of the language model, as on the histograms of the phase.
            attributes = {
                semconv.REQUEST_MODEL: str(span.attributes.get(semconv.REQUEST_MODEL, "")),
                semconv.STAGE: phase.phase,
            }
            instruments.record(semconv.PROFILE_TOKEN_DURATION, 1 / rate, attributes)
    mode = "profile" if run.root.name == semconv.GENERATE_MUSIC else run.root.name
    instruments.record(semconv.RUN_TIME, time.time(), {**model, semconv.MODE: mode})


Loaded = TypeVar("Loaded")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a measured run.

    Attributes:
        effective: settings that took effect.
        summary: lines for the terminal, above the breakdown.
        songs: the files written.
        blueprint: the description of a song.
    """

    effective: EffectiveSettings | EffectivePlannerSettings
    summary: tuple[str, ...]
    songs: tuple[Path, ...] = ()
    blueprint: SongBlueprint | None = None


class MeasuredCall(Protocol[Loaded]):
    """The call that a mode measures."""

    @property
    def root(self) -> str:
        """Name of the root span of its call (``acestep_otel.semconv``)."""

    def load(self) -> Loaded:
        """Load the models."""

    def warm_up(self, models: Loaded, progress: ProgressCallback) -> None:
        """Run the measured call once, without leaving files."""

    def measure_guidance(self, models: Loaded) -> GuidanceShare | None:
        """Measure the cost of guidance with forward passes, so only after a warm-up."""

    def run(self, models: Loaded, progress: ProgressCallback) -> Outcome:
        """Run the measured call."""


def measure(options: Options, telemetry: Telemetry, call: MeasuredCall[Loaded]) -> None:
    """Measure a call: the breakdown goes to standard output, files go where the options say.

    Raises:
        SetupError: an input cannot be used; nothing was run.
        AceStepError: the run failed; the measurements up to then are printed and written.
        OSError: the result or the trace could not be written.
    """
    detail = detail_level(options.detail)
    require_outputs(options, *profiler_files(options))

    limit_threads(options)
    with instrumented(telemetry, detail, "path" if options.songs_in_trace else None):
        with setup_errors():
            enforce_memory_cap(resolve_device(options.renderer_device), engine_settings().memory_limit)
            with loading("models", enabled=not options.no_progress):
                models = call.load()
        outcome: Outcome | None = None
        error: BaseException | None = None
        share: GuidanceShare | None = None
        try:
            if not options.no_warmup:
                with warmup(), ProgressBars("warm-up", enabled=not options.no_progress) as progress:
                    call.warm_up(models, progress)
                share = call.measure_guidance(models)
            with (
                guidance_share(share),
                annotated(_profile_link(options)),
                ProgressBars(options.mode, enabled=not options.no_progress) as progress,
            ):
                outcome = call.run(models, progress)
        except BaseException as raised:
            error = raised
            raise
        finally:
            _report(options, telemetry, call.root, outcome, error)
    # After the block: these runs are not traced, and no reported value comes from them.
    with ProgressBars("profiler", enabled=not options.no_progress) as progress:
        run_profilers(options, lambda: call.warm_up(models, progress))


def _profile_link(options: Options) -> dict[str, str]:
    """The file with the kernels of the measured call, written by a later run of the same call."""
    return {semconv.PROFILE_FILE: str(operator_trace(options).absolute())} if options.torch_profile else {}


@contextmanager
def setup_errors() -> Iterator[None]:
    """Turn errors of the engine before the run into set-up errors."""
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
    except OSError as error:
        # A name that is too long, a folder that may not be read.
        raise SetupError(str(error)) from error


def limit_threads(options: Options) -> None:
    """Run tiny models on one thread: handing such small tensors to a second one takes longer than computing them."""
    if options.tiny:
        torch.set_num_threads(1)


def release_memory() -> None:
    """Free the memory of an earlier run, so that all runs start in the same state."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _report(
    options: Options, telemetry: Telemetry, root: str, outcome: Outcome | None, error: BaseException | None
) -> None:
    flush_telemetry()
    measured = measured_runs(telemetry.collector.finished_spans, root)
    run = measured[-1] if measured else None
    if run is not None and error is None:
        record_figures(run, telemetry)
    songs = outcome.songs if outcome is not None else ()
    environment = Environment.current()

    def write_entry() -> None:
        assert options.benchmark_output is not None
        entry = RunResult(
            run=run,
            effective=None if outcome is None else outcome.effective,
            error=error,
            songs=songs,
            blueprint=None if outcome is None else outcome.blueprint,
        )
        write_result(
            options.benchmark_output,
            result_document(
                mode=options.mode, environment=environment, arguments=shown_options(options), results=[entry]
            ),
        )

    def write_page() -> None:
        assert options.report is not None
        report = Report(
            mode=options.mode,
            environment=environment,
            command=command_line(options),
            arguments=shown_options(options),
            runs=measured[-1:],
            failure=None if error is None else f"{type(error).__name__}: {message_of(error)}",
            preparation=Preparation.of(telemetry.collector.finished_spans, root),
        )
        write_report(options.report, report)

    write_outputs(
        (
            ("Result", options.benchmark_output, write_entry),
            ("Report", options.report, write_page),
            ("Trace", options.trace_output, telemetry.write_trace_file),
        ),
        lambda: (*_lines(options, outcome, run), *(f"{'Song:':<8} {song}" for song in songs)),
    )


def _lines(options: Options, outcome: Outcome | None, run: Run | None) -> Iterator[str]:
    if outcome is not None:
        yield from outcome.summary
        yield ""
    if run is not None:
        work = RunWork.of(run) if options.roofline else None
        yield render_breakdown(Breakdown.of(run), work)
        yield ""
        if len(peaks := peak_by_device(run)) > 1:
            yield render_peaks(peaks)
            yield ""
        if work is not None:
            yield render_work(work)
            yield ""
        if stalls := list(stall_lines(run)):
            yield from ("STALLS", *(f"  {line}" for line in stalls), "")
        if (energy := RunEnergy.of(run)) is not None:
            yield render_energy(energy)
            yield ""
        if options.llm_debug:
            yield render_token_statistics(token_statistics(run))
            yield ""
    elif outcome is not None:
        yield "Tracing was off, so there is no breakdown."
        yield ""
