"""Runs the cells of a benchmark one after the other on one device, with models that are loaded once."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from acestep.checkpoints import Models, ModelSelection, load_models, load_planner, require_language_model
from acestep.devices import resolve_device
from acestep.errors import AceStepError
from acestep.inference import generate_music
from acestep.memory_cap import enforce_memory_cap
from acestep.types import EffectiveSettings, GenerationRequest
from acestep.validation import validate
from acestep_otel import semconv
from acestep_otel.profiler.benchmark.matrix import Cell, CellResult, Failure, Figures, cell_options
from acestep_otel.profiler.options import Options
from acestep_otel.profiler.report.breakdown import Breakdown
from acestep_otel.profiler.report.results import RunResult
from acestep_otel.profiler.report.spans import measured_runs
from acestep_otel.profiler.run.example import Example
from acestep_otel.profiler.run.generation_request import build_request, select_models
from acestep_otel.profiler.run.measurement import limit_threads, release_memory, setup_errors
from acestep_otel.profiler.run.placement import describe_models, engine_settings, gpu_memory
from acestep_otel.profiler.telemetry.providers import SpanCollector, flush_telemetry
from acestep_otel.profiler.terminal import echo
from acestep_otel.recording import GuidanceShare, annotated, guidance_share, measure_guidance_share, warmup


def prepare_device(options: Options) -> float:
    """Make the device ready for a benchmark; returns its memory in GiB, which decides the tier.

    Raises:
        SetupError: it does not exist, or an environment variable about it is invalid.
    """
    limit_threads(options)
    with setup_errors():
        device = resolve_device(options.renderer_device)
        settings = engine_settings()
        enforce_memory_cap(device, settings.memory_limit)
        return gpu_memory(device, settings)


def cell_request(example: Example, options: Options, cell: Cell) -> GenerationRequest:
    """The request of a cell, checked.

    Raises:
        SetupError: the engine refuses the options.
    """
    with setup_errors():
        request = build_request(example, cell_options(options, cell))
        validate(request)
    return request


def require_planner(options: Options, requests: Mapping[Cell, GenerationRequest]) -> None:
    """Make sure, without loading it, that the language model can be loaded if a cell uses it.

    Raises:
        SetupError: it cannot be loaded.
    """
    if songs := planner_songs(requests):
        with setup_errors():
            require_language_model(_select_planner(options, songs))


def planner_songs(requests: Mapping[Cell, GenerationRequest]) -> int:
    """Songs of the largest cell that uses the language model; 0 if none does."""
    return max((request.batch_size for request in requests.values() if request.needs_language_model), default=0)


def _select_planner(options: Options, songs: int) -> ModelSelection:
    return select_models(options, with_language_model=True, songs=songs)


@dataclass
class CellRunner:
    """One device with its models.

    Attributes:
        options: of the command line.
        collector: of the spans of the cells.
        models: loaded so far.
        models_line: the models that ran and their placement; ``None`` before the first run.
    """

    options: Options
    collector: SpanCollector
    models: Models = field(init=False)
    models_line: str | None = None

    def load(self) -> None:
        """Load what every cell needs; the language model is loaded when a cell uses it.

        Raises:
            SetupError: a model is missing, or cannot be used here.
            AceStepError: it could not be loaded.
        """
        with setup_errors():
            self.models = load_models(select_models(self.options, with_language_model=False))

    @property
    def model_name(self) -> str:
        """Name of the diffusion model."""
        return self.models.renderer.models.name

    def run_cell(self, cell: Cell, index: int, request: GenerationRequest, songs: int) -> CellResult:
        """Run one cell: a warm-up, then the requested number of runs.

        Args:
            cell: the configuration.
            index: its place in the matrix.
            request: its request.
            songs: largest number of songs that the language model generates at once.
        """
        figures: list[Figures] = []
        entries: list[dict[str, Any]] = []
        failure: Failure | None = None
        try:
            if request.needs_language_model and self.models.planner is None:
                self.models = replace(self.models, planner=load_planner(_select_planner(self.options, songs)))
            with annotated({semconv.BENCHMARK_CELL: index}):
                share: GuidanceShare | None = None
                if not self.options.no_warmup:
                    with warmup():
                        _generate(self.models, request)
                    share = measure_guidance_share(self.models, request)
                for repeat in range(self.options.repeat):
                    with annotated({semconv.BENCHMARK_REPEAT: repeat}), guidance_share(share):
                        figures.append(self.run_once(request, entries))
        except Exception as error:
            failure = Failure.of(error)
            if not isinstance(error, AceStepError):
                # A defect: the traceback is printed, because the result file has no field for it.
                echo("".join(traceback.format_exception(error)), err=True)
        if failure is not None:
            release_memory()
        return CellResult(cell, tuple(figures), failure, tuple(entries))

    def run_once(self, request: GenerationRequest, entries: list[dict[str, Any]]) -> Figures:
        """Run a cell's request once; its entry is added even if it fails."""
        flush_telemetry()
        position = len(self.collector.readable_spans)
        effective: EffectiveSettings | None = None
        error: BaseException | None = None
        try:
            effective = _generate(self.models, request)
            if effective.lm_model is not None or self.models_line is None:
                self.models_line = describe_models(effective)
        except BaseException as raised:
            error = raised
            raise
        finally:
            flush_telemetry()
            runs = measured_runs(self.collector.finished_since(position))
            run = runs[-1] if runs else None
            entries.append(RunResult(run, effective, error).to_json())
        if run is None:
            raise RuntimeError("the run left no trace from which to compute its figures")
        return Figures.of(Breakdown.of(run))


def _generate(models: Models, request: GenerationRequest) -> EffectiveSettings:
    """Run a request; its songs are saved, because saving is part of the wall time, and then deleted."""
    with TemporaryDirectory() as folder:
        return generate_music(models, request, save_dir=Path(folder)).effective
