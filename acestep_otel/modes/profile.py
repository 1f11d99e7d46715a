"""Mode ``profile``: one generation, and where its time went.

A warm-up of the same shape comes first, then a calibration of what guidance costs, then the measured run. Everything
reported is computed from the spans of the measured run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import torch

from acestep.audio import check_output_directory
from acestep.checkpoints import Models, load_models
from acestep.errors import AudioWriteError, BackendUnavailable, CheckpointNotFound, DeviceUnavailable, InvalidRequest
from acestep.inference import generate_music
from acestep.types import GenerationRequest, GenerationResult
from acestep.validation import validate
from acestep_otel.errors import SetupError
from acestep_otel.files import require_writable
from acestep_otel.modes.example import load_example
from acestep_otel.modes.options import Options
from acestep_otel.modes.progress import ProgressBars
from acestep_otel.modes.request import build_request, select_models
from acestep_otel.modes.tracing import detail_level, instrumented
from acestep_otel.providers import Telemetry
from acestep_otel.recording import calibrate_guidance, warmup
from acestep_otel.report.breakdown import Breakdown
from acestep_otel.report.environment import Environment
from acestep_otel.report.results import RunResult, result_document, write_result
from acestep_otel.report.spans import Run, measured_runs
from acestep_otel.report.terminal import render_breakdown


def profile(options: Options, telemetry: Telemetry) -> None:
    """Run the mode: the breakdown goes to standard output, files go where the options say.

    Raises:
        SetupError: something the user gave cannot be used; nothing was run.
        AceStepError: the run failed; what was measured until then is printed and written.
        OSError: the result or the trace could not be written.
    """
    detail = detail_level(options.detail)
    request = build_request(load_example(options.example), options)
    with _setup_errors():
        validate(request)
        check_output_directory(options.output_dir)
    for path in (options.benchmark_output, options.trace_output):
        if path is not None:
            require_writable(path)

    if options.tiny:
        # Handing such small tensors to a second thread takes longer than computing them.
        torch.set_num_threads(1)
    with instrumented(telemetry, detail):
        with _setup_errors():
            models = load_models(select_models(request, options))
        result: GenerationResult | None = None
        error: BaseException | None = None
        try:
            if not options.no_warmup:
                _warm_up(models, request, options)
            with ProgressBars("profile", enabled=not options.no_progress) as progress:
                result = generate_music(models, request, save_dir=options.output_dir, progress=progress)
        except BaseException as raised:
            error = raised
            raise
        finally:
            _report(options, telemetry, result, error)


def _warm_up(models: Models, request: GenerationRequest, options: Options) -> None:
    """Run once what will be measured, and measure what guidance adds to a forward pass.

    Without a warm-up there is no calibration either: its forward passes would be one.
    """
    with (
        warmup(),
        TemporaryDirectory() as folder,
        ProgressBars("warm-up", enabled=not options.no_progress) as progress,
    ):
        generate_music(models, request, save_dir=Path(folder), progress=progress)
    calibrate_guidance(models, request)


@contextmanager
def _setup_errors() -> Iterator[None]:
    """Before the run, what the engine refuses is a matter of set-up."""
    try:
        yield
    except (InvalidRequest, AudioWriteError, CheckpointNotFound, DeviceUnavailable, BackendUnavailable) as error:
        raise SetupError(str(error)) from error


def _report(
    options: Options, telemetry: Telemetry, result: GenerationResult | None, error: BaseException | None
) -> None:
    measured = measured_runs(telemetry.collector.finished_spans)
    run = measured[-1] if measured else None
    songs = tuple(song.path for song in result.songs if song.path is not None) if result is not None else ()
    for line in _summary(result, run):
        click.echo(line)
    if options.benchmark_output is not None:
        entry = RunResult(run, None if result is None else result.effective, error, songs)
        write_result(
            options.benchmark_output,
            result_document(
                mode=options.mode, environment=Environment.current(), arguments=asdict(options), results=[entry]
            ),
        )
    telemetry.write_trace_file()
    for label, paths in (("Song", songs), ("Result", (options.benchmark_output,)), ("Trace", (options.trace_output,))):
        for path in paths:
            if path is not None:
                click.echo(f"{label + ':':<8} {path}")


def _summary(result: GenerationResult | None, run: Run | None) -> Iterator[str]:
    if result is not None:
        done = result.effective
        planner = f", {done.lm_model} ({done.lm_backend})" if done.lm_model else ""
        seeds = ", ".join(map(str, done.seeds))
        yield f"{done.dit_model}{planner} on {done.device}, {done.dtype}, weights: {done.weights}"
        yield f"{done.batch_size} x {done.duration:g} s, {done.steps} steps, seed {seeds}"
        yield ""
    if run is not None:
        yield render_breakdown(Breakdown.of(run))
        yield ""
    elif result is not None:
        yield "Tracing was off, so there is no breakdown."
        yield ""
