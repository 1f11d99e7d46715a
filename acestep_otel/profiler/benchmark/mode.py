"""Mode ``benchmark``: a matrix of configurations, one row each.

Every cell is warmed up at its own shape and then run as often as asked. A failed cell is a row too, and the others
continue. The result file is rewritten after each cell, so an interrupted benchmark keeps its rows.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from acestep.checkpoints import Models, ModelSelection, load_models, load_planner, require_language_model
from acestep.devices import resolve_device
from acestep.errors import AceStepError
from acestep.gpu_config import GPUConfig, gpu_config
from acestep.inference import generate_music
from acestep.memory_cap import enforce_memory_cap
from acestep.types import EffectiveSettings, GenerationRequest
from acestep.validation import validate
from acestep_otel import __version__, semconv
from acestep_otel.profiler.benchmark.matrix import Cell, CellResult, Failure, Figures, Matrix, cell_options
from acestep_otel.profiler.benchmark.matrix_table import render_matrix, render_spread
from acestep_otel.profiler.errors import RunFailed
from acestep_otel.profiler.files import can_be_replaced
from acestep_otel.profiler.options import Options, command_line, shown_options
from acestep_otel.profiler.report.breakdown import Breakdown
from acestep_otel.profiler.report.environment import Environment
from acestep_otel.profiler.report.html import Report, write_report
from acestep_otel.profiler.report.results import RunResult, result_document, write_result
from acestep_otel.profiler.report.spans import measured_runs
from acestep_otel.profiler.run.example import load_example
from acestep_otel.profiler.run.generation_request import build_request, select_models
from acestep_otel.profiler.run.measurement import limit_threads, release_memory, setup_errors
from acestep_otel.profiler.run.outputs import require_outputs, write_outputs
from acestep_otel.profiler.run.placement import describe_models, describe_placement, engine_settings, gpu_memory
from acestep_otel.profiler.run.progress import CellBar, loading
from acestep_otel.profiler.telemetry.providers import Telemetry, flush_telemetry, instrumented, require_tracing
from acestep_otel.profiler.terminal import echo
from acestep_otel.recording import GuidanceShare, annotated, guidance_share, measure_guidance_share, warmup
from acestep_otel.recording.instruments import Instruments


def benchmark(options: Options, telemetry: Telemetry) -> None:
    """Run the mode: the table goes to standard output, files go where the options say.

    Raises:
        SetupError: an input cannot be used; nothing was run.
        AceStepError: the diffusion model could not be loaded.
        RunFailed: a cell failed; every cell is in the table.
        OSError: the result or the trace could not be written.
    """
    detail = require_tracing("a benchmark", options, telemetry)
    require_outputs(options)
    example = load_example(options.example)
    limit_threads(options)
    with setup_errors():
        device = resolve_device(options.device)
        settings = engine_settings()
        enforce_memory_cap(device, settings.memory_limit)
        memory = gpu_memory(device, settings)
        config = gpu_config(memory)
        matrix = Matrix.of(options, config)
        requests = {cell: build_request(example, cell_options(options, cell)) for cell in matrix.cells}
        for request in requests.values():
            validate(request)
    cells = "cell" if len(matrix.cells) == 1 else "cells"
    found = f"{memory:.1f} GiB of GPU memory" if memory else "no GPU"
    for line in (f"{len(matrix.cells)} {cells}, limits of {config.tier} ({found})", *matrix.clamp_lines()):
        echo(line)

    with instrumented(telemetry, detail):
        run = _Benchmark(options, telemetry, matrix, config, memory, requests)
        try:
            run.run()
        finally:
            run.report()
    if run.failure is not None:
        raise RunFailed(run.failure)


@dataclass
class _Benchmark:
    """A benchmark that is being run, and its rows so far."""

    options: Options
    telemetry: Telemetry
    matrix: Matrix
    config: GPUConfig
    memory: float
    requests: Mapping[Cell, GenerationRequest]
    environment: Environment = field(default_factory=Environment.current)
    results: dict[Cell, CellResult] = field(default_factory=dict)
    models_line: str | None = None

    def __post_init__(self) -> None:
        self.instruments = Instruments(self.telemetry.meter_provider.get_meter("acestep_otel", __version__))

    def run(self) -> None:
        """Run every cell: first those without the language model, which is not loaded until it is needed."""
        with setup_errors():
            if any(request.needs_language_model for request in self.requests.values()):
                require_language_model(self.select_planner())
            with loading("models", enabled=not self.options.no_progress):
                models = load_models(select_models(self.options, with_language_model=False))
        for line in describe_placement(models.placement, self.options):
            echo(line)
        with CellBar(self.matrix.cells, enabled=not self.options.no_progress) as bar:
            for cell in sorted(self.matrix.cells, key=lambda cell: self.requests[cell].needs_language_model):
                bar.start(cell)
                models = self.run_cell(cell, models)
                if self.options.benchmark_output is None or can_be_replaced(self.options.benchmark_output):
                    self.write()
                bar.finish(cell)

    def select_planner(self) -> ModelSelection:
        """The language model, with room for the largest cell that asks it something."""
        asking = (request for request in self.requests.values() if request.needs_language_model)
        songs = max(request.batch_size for request in asking)
        return select_models(self.options, with_language_model=True, songs=songs)

    def run_cell(self, cell: Cell, models: Models) -> Models:
        """Run one cell and note its row; returns the models, with the language model when the cell brought it in."""
        request = self.requests[cell]
        figures: list[Figures] = []
        entries: list[dict[str, Any]] = []
        failure: Failure | None = None
        try:
            if request.needs_language_model and models.planner is None:
                models = replace(models, planner=load_planner(self.select_planner()))
            with annotated({semconv.BENCHMARK_CELL: self.matrix.cells.index(cell)}):
                share: GuidanceShare | None = None
                if not self.options.no_warmup:
                    with warmup():
                        _generate(models, request)
                    share = measure_guidance_share(models, request)
                for repeat in range(self.options.repeat):
                    with annotated({semconv.BENCHMARK_REPEAT: repeat}), guidance_share(share):
                        figures.append(self.run_once(models, request, entries))
        except Exception as error:
            failure = Failure.of(error)
            if not isinstance(error, AceStepError):
                # A defect: its traceback is what helps, and the result file has no place for it.
                echo("".join(traceback.format_exception(error)), err=True)
        if failure is not None:
            release_memory()
        result = CellResult(cell, tuple(figures), failure, tuple(entries))
        self.results[cell] = result
        self.record(result, models)
        return models

    def run_once(self, models: Models, request: GenerationRequest, entries: list[dict[str, Any]]) -> Figures:
        """Run a cell's request once; its entry is added also when it fails."""
        flush_telemetry()
        position = len(self.telemetry.collector.readable_spans)
        effective: EffectiveSettings | None = None
        error: BaseException | None = None
        try:
            effective = _generate(models, request)
            if effective.lm_model is not None or self.models_line is None:
                self.models_line = describe_models(effective)
        except BaseException as raised:
            error = raised
            raise
        finally:
            flush_telemetry()
            runs = measured_runs(self.telemetry.collector.finished_since(position))
            run = runs[-1] if runs else None
            entries.append(RunResult(run, effective, error).to_json())
        if run is None:
            raise RuntimeError("the run left no trace to take its figures from")
        return Figures.of(Breakdown.of(run))

    def record(self, result: CellResult, models: Models) -> None:
        """Record the cell's metrics."""
        model = {semconv.REQUEST_MODEL: models.renderer.models.name}
        outcome = "ok" if result.failure is None else result.failure.type
        self.instruments.record(semconv.BENCHMARK_CELLS, 1, {**model, semconv.OUTCOME: outcome})
        attributes: dict[str, str | bool | int | float] = {
            **model,
            semconv.AUDIO_DURATION_REQUESTED: result.cell.duration,
            semconv.BATCH_SIZE: result.cell.batch_size,
            semconv.THINKING: result.cell.thinking,
            semconv.DIT_STEPS_REQUESTED: result.cell.inference_steps,
        }
        self.instruments.record(semconv.BENCHMARK_STATUS, int(result.failure is None), attributes)
        self.instruments.record(semconv.RUN_TIME, time.time(), {**model, semconv.MODE: "benchmark"})
        if (summary := result.summary) is None:
            return
        metrics = (semconv.BENCHMARK_WALL, semconv.BENCHMARK_LM, semconv.BENCHMARK_DIT, semconv.BENCHMARK_VAE)
        for metric, seconds in zip(metrics, summary.median, strict=True):
            self.instruments.record(metric, seconds, attributes)

    @property
    def rows(self) -> list[CellResult]:
        """The rows so far, in the matrix's order."""
        return [self.results[cell] for cell in self.matrix.cells if cell in self.results]

    @property
    def failure(self) -> str | None:
        """How many cells failed, as a line; ``None`` when none did."""
        failed = sum(result.failure is not None for result in self.results.values())
        return f"{failed} of {len(self.matrix.cells)} cells failed" if failed else None

    def write(self) -> None:
        """Write the result file, if one was asked for."""
        if self.options.benchmark_output is None:
            return
        document = result_document(
            mode=self.options.mode,
            environment=self.environment,
            arguments=shown_options(self.options),
            results=self.rows,
            benchmark={
                "tier": self.config.tier,
                "gpu_memory": self.memory,
                "cells": len(self.matrix.cells),
                "clamped": [asdict(clamp) for clamp in self.matrix.clamps],
            },
        )
        write_result(self.options.benchmark_output, document)

    def report(self) -> None:
        """Write the files, and print the table."""
        write_outputs(
            (
                ("Result", self.options.benchmark_output if self.rows else None, self.write),
                ("Report", self.options.report, self.write_page),
                ("Trace", self.options.trace_output, self.telemetry.write_trace_file),
            ),
            self.lines,
        )

    def write_page(self) -> None:
        """Write the HTML page, if one was asked for."""
        if self.options.report is not None:
            write_report(
                self.options.report,
                Report(
                    mode=self.options.mode,
                    environment=self.environment,
                    command=command_line(self.options),
                    arguments=shown_options(self.options),
                    matrix=self.rows,
                    failure=self.failure,
                ),
            )

    def lines(self) -> Iterator[str]:
        """The table, and below it every failure in full."""
        rows = self.rows
        if self.models_line is not None:
            yield self.models_line
        if rows:
            yield f"\n{render_matrix(rows)}\n"
            if self.options.repeat > 1:
                yield f"{render_spread(rows)}\n"
        for result in rows:
            if result.failure is not None:
                yield f"{result.cell}: {result.failure.type}: {result.failure.message}"
        if len(rows) < len(self.matrix.cells):
            yield f"Stopped after {len(rows)} of {len(self.matrix.cells)} cells."


def _generate(models: Models, request: GenerationRequest) -> EffectiveSettings:
    """Run a request; its songs are saved, because saving is part of the wall time, and then dropped."""
    with TemporaryDirectory() as folder:
        return generate_music(models, request, save_dir=Path(folder)).effective
