"""Mode ``benchmark``: a matrix of configurations, one row each.

Every cell is warmed up at its own shape and then run the requested number of times: in this process, or with ``--gpus``
on several cards in parallel. A failed cell is a row too, and the others continue; the result file is written again
after each cell, so an interrupted benchmark keeps its completed cells.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, Self

from acestep.cards import Card
from acestep.gpu_config import GPUConfig, gpu_config
from acestep.types import GenerationRequest
from acestep_otel import __version__, semconv
from acestep_otel.profiler.benchmark.cells import (
    CellRunner,
    cell_request,
    planner_songs,
    prepare_device,
    require_planner,
)
from acestep_otel.profiler.benchmark.matrix import Cell, CellResult, Matrix
from acestep_otel.profiler.benchmark.matrix_table import render_matrix, render_spread
from acestep_otel.profiler.benchmark.on_cards import CardCells
from acestep_otel.profiler.benchmark.on_ray import RayCells
from acestep_otel.profiler.children.cards import card_attributes, card_lines
from acestep_otel.profiler.errors import RunFailed
from acestep_otel.profiler.files import can_be_replaced
from acestep_otel.profiler.options import Options, command_line, shown_options
from acestep_otel.profiler.report.environment import Environment
from acestep_otel.profiler.report.html import Report, write_report
from acestep_otel.profiler.report.results import result_document, write_result
from acestep_otel.profiler.report.spans import Preparation
from acestep_otel.profiler.run.example import load_example
from acestep_otel.profiler.run.outputs import require_outputs, write_outputs
from acestep_otel.profiler.run.placement import describe_placement
from acestep_otel.profiler.run.progress import CellBar, loading
from acestep_otel.profiler.telemetry.providers import Telemetry, instrumented, require_tracing
from acestep_otel.profiler.terminal import echo
from acestep_otel.recording.instruments import Instruments
from acestep_otel.settings import Detail


class Cells(Protocol):
    """The processes and devices that run cells."""

    @property
    def memory(self) -> float:
        """GiB of GPU memory that determine the tier; 0 without a GPU."""

    @property
    def environment(self) -> Environment:
        """Hardware and versions."""

    @property
    def cards(self) -> tuple[Card, ...]:
        """The cards of several processes; none for this process's own device."""

    @property
    def models_line(self) -> str | None:
        """Which models ran, and where; ``None`` before one did."""

    @property
    def model_name(self) -> str:
        """Name of the diffusion model."""

    @property
    def lost(self) -> Sequence[Mapping[str, Any]]:
        """Workers that were lost whose cells were run elsewhere, as the result file has them."""

    def lines(self) -> Iterator[str]:
        """The same in words."""

    def results(self, requests: Mapping[Cell, GenerationRequest]) -> Iterator[CellResult]:
        """Run every cell, and yield each result when it is complete."""


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
    with ExitStack() as stack:
        cells: Cells
        if options.ray is not None:
            cells = stack.enter_context(RayCells(options, telemetry))
        elif options.gpus is not None:
            cells = stack.enter_context(CardCells(options, telemetry))
        else:
            cells = stack.enter_context(OwnCells(options, telemetry, detail))
        config = gpu_config(cells.memory)
        matrix = Matrix.of(options, config)
        requests = {cell: cell_request(example, options, cell) for cell in matrix.cells}
        noun = "cell" if len(matrix.cells) == 1 else "cells"
        found = f"{cells.memory:.1f} GiB of GPU memory" if cells.memory else "no GPU"
        echo(f"{len(matrix.cells)} {noun}, limits of {config.tier} ({found})")
        for line in (*matrix.clamp_lines(), *card_lines(cells.cards)):
            echo(line)
        run = _Benchmark(options, telemetry, matrix, config, cells)
        try:
            run.run(requests)
        finally:
            run.report()
    if run.failure is not None:
        raise RunFailed(run.failure)


class OwnCells:
    """Cells on this process's own device (``Cells``).

    Used as a context manager, in which the engine is traced.
    """

    def __init__(self, options: Options, telemetry: Telemetry, detail: Detail) -> None:
        """Make the device ready.

        Raises:
            SetupError: the device cannot be used.
        """
        self.memory = prepare_device(options)
        self.environment = Environment.current()
        self.cards: tuple[Card, ...] = ()
        self.lost: tuple[Mapping[str, Any], ...] = ()
        self._options = options
        self._runner = CellRunner(options, telemetry.collector)
        self._instrumented = instrumented(telemetry, detail)

    def lines(self) -> Iterator[str]:
        """Nothing can be lost."""
        return iter(())

    def __enter__(self) -> Self:
        self._instrumented.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._instrumented.__exit__(*error)

    @property
    def models_line(self) -> str | None:
        """Which models ran, and where."""
        return self._runner.models_line

    @property
    def model_name(self) -> str:
        """Name of the diffusion model."""
        return self._runner.model_name

    def results(self, requests: Mapping[Cell, GenerationRequest]) -> Iterator[CellResult]:
        """Run every cell: first those without the language model, which is loaded when it is needed."""
        options = self._options
        require_planner(options, requests)
        with loading("models", enabled=not options.no_progress):
            self._runner.load()
        for line in describe_placement(self._runner.models.placement, options):
            echo(line)
        cells = list(requests)
        songs = planner_songs(requests)
        with CellBar(cells, enabled=not options.no_progress) as bar:
            for cell in sorted(cells, key=lambda cell: requests[cell].needs_language_model):
                bar.start(cell)
                yield self._runner.run_cell(cell, cells.index(cell), requests[cell], songs)
                bar.finish(cell)


@dataclass
class _Benchmark:
    """A running benchmark, and its rows so far."""

    options: Options
    telemetry: Telemetry
    matrix: Matrix
    config: GPUConfig
    cells: Cells
    results: dict[Cell, CellResult] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.instruments = Instruments(self.telemetry.meter_provider.get_meter("acestep_otel", __version__))

    def run(self, requests: Mapping[Cell, GenerationRequest]) -> None:
        """Run every cell and note its row."""
        for result in self.cells.results(requests):
            self.results[result.cell] = result
            self.record(result)
            if self.options.benchmark_output is None or can_be_replaced(self.options.benchmark_output):
                self.write()

    def record(self, result: CellResult) -> None:
        """Record the cell's metrics."""
        model = {semconv.REQUEST_MODEL: self.cells.model_name}
        outcome = "ok" if result.failure is None else result.failure.type
        card = {} if result.card is None else card_attributes(result.card)
        self.instruments.record(semconv.BENCHMARK_CELLS, 1, {**model, semconv.OUTCOME: outcome})
        attributes: dict[str, str | bool | int | float] = {
            **model,
            **card,
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
        """A line with the number of failed cells; ``None`` if none failed."""
        failed = sum(result.failure is not None for result in self.results.values())
        return f"{failed} of {len(self.matrix.cells)} cells failed" if failed else None

    def write(self) -> None:
        """Write the result file, if one was requested."""
        if self.options.benchmark_output is None:
            return
        document = result_document(
            mode=self.options.mode,
            environment=self.cells.environment,
            arguments=shown_options(self.options),
            results=self.rows,
            benchmark={
                "tier": self.config.tier,
                "gpu_memory": self.cells.memory,
                "cells": len(self.matrix.cells),
                "clamped": [asdict(clamp) for clamp in self.matrix.clamps],
                "lost": list(self.cells.lost),
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
        """Write the HTML page, if one was requested."""
        if self.options.report is not None:
            write_report(
                self.options.report,
                Report(
                    mode=self.options.mode,
                    environment=self.cells.environment,
                    command=command_line(self.options),
                    arguments=shown_options(self.options),
                    matrix=self.rows,
                    failure=self.failure,
                    preparation=Preparation.of(self.telemetry.collector.finished_spans),
                ),
            )

    def lines(self) -> Iterator[str]:
        """The table, and below it every failure in full."""
        rows = self.rows
        if self.cells.models_line is not None:
            yield self.cells.models_line
        if rows:
            yield f"\n{render_matrix(rows)}\n"
            if self.options.repeat > 1:
                yield f"{render_spread(rows)}\n"
        for result in rows:
            if result.failure is not None:
                yield f"{result.cell}: {result.failure.type}: {result.failure.message}"
        yield from self.cells.lines()
        if len(rows) < len(self.matrix.cells):
            yield f"Stopped after {len(rows)} of {len(self.matrix.cells)} cells."
