"""The child process of a tier test: one capped card, the models loaded once, one generation after the other.

Started by its parent as a module. Reads the job from standard input and writes events to standard output
(``acestep_otel.profiler.tier_test.protocol``); all other output goes to standard error.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch
from opentelemetry import context as otel_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from acestep.checkpoints import Models, load_models
from acestep.devices import resolve_device
from acestep.errors import AceStepError, BackendFailed, BudgetExceeded, OutOfMemory
from acestep.gpu_config import gpu_config
from acestep.inference import generate_music
from acestep.memory_cap import MemoryCap, enforce_memory_cap
from acestep.types import SAMPLE_RATE, GenerationRequest, GenerationResult
from acestep_otel.errors import SetupError
from acestep_otel.patches.engine import PATCHES
from acestep_otel.patches.patcher import Patcher
from acestep_otel.profiler.benchmark.matrix import Failure, Figures
from acestep_otel.profiler.children.cards import card_attributes
from acestep_otel.profiler.children.parent import Parent
from acestep_otel.profiler.children.processes import TRACE_PARENT
from acestep_otel.profiler.report.breakdown import Breakdown
from acestep_otel.profiler.report.environment import Environment
from acestep_otel.profiler.report.results import RunResult
from acestep_otel.profiler.report.spans import measured_runs
from acestep_otel.profiler.run.example import load_example
from acestep_otel.profiler.run.measurement import limit_threads, release_memory, setup_errors
from acestep_otel.profiler.run.placement import engine_settings, gpu_memory
from acestep_otel.profiler.telemetry.providers import (
    SpanCollector,
    Telemetry,
    detail_level,
    flush_telemetry,
    instrumented,
)
from acestep_otel.profiler.tier_test.forwarding import SpanForwarder
from acestep_otel.profiler.tier_test.journal import StageJournal
from acestep_otel.profiler.tier_test.memory import DriverView, MemoryWatch, UseBefore, memory_use
from acestep_otel.profiler.tier_test.plan import Trials, trial_attributes, trial_request, trial_selection
from acestep_otel.profiler.tier_test.protocol import Event, Finished, Refused, Started, decode_job, encode
from acestep_otel.profiler.tier_test.trials import AudioFacts, Observation, Trial
from acestep_otel.profiler.tier_test.verdict import asked_placement, config_facts
from acestep_otel.recording import annotated

_OUT_OF_MEMORY_WORDS: Final = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def main() -> None:
    """Do the job from standard input."""
    parent = Parent()
    # Before this process uses the device: the present use is that of other processes.
    before = UseBefore.read()
    job = decode_job(parent.hear())
    limit_threads(job.options)
    otel_context.attach(TraceContextTextMapPropagator().extract({"traceparent": os.environ.get(TRACE_PARENT, "")}))
    serve(job, lambda event: parent.say(encode(event)), before)


def serve(job: Trials, send: Callable[[Event], None], before: UseBefore) -> None:
    """Do a job in this process.

    Args:
        job: what to do.
        send: called with every event.
        before: memory in use by others before this process used the devices.
    """
    with Telemetry() as telemetry, instrumented(telemetry, detail_level(job.options.detail)):
        telemetry.tracer_provider.add_span_processor(SpanForwarder(send))
        try:
            device = resolve_device(job.options.device)
            settings = engine_settings()
            cap = enforce_memory_cap(device, settings.memory_limit)
            config = gpu_config(gpu_memory(device, settings))
        except AceStepError as error:
            send(Refused(Failure.of(error)))
            return
        if device.type == "cuda":
            # The first tensor creates the context; after it the driver's list contains this process.
            torch.zeros(1, device=device)
        send(Started(str(device), config_facts(config), Environment.current()))
        view = DriverView.of(device, before)
        with MemoryWatch(view) as watch:
            journal = StageJournal(send, watch)
            # Around the tracing layer: a request's spans are handed over before the journal reports its end.
            patcher = Patcher(journal)
            patcher.apply(PATCHES)
            try:
                _Work(job, send, device, cap, view, watch, journal, telemetry.collector).run()
            finally:
                patcher.remove()


@dataclass
class _Work:
    """Trials of one job."""

    job: Trials
    send: Callable[[Event], None]
    device: torch.device
    cap: MemoryCap | None
    view: DriverView | None
    watch: MemoryWatch
    journal: StageJournal
    collector: SpanCollector
    models: Models | None = None

    def run(self) -> None:
        """Run trial after trial until one runs out of memory, after which the process is not in a clean state."""
        example = load_example(self.job.options.example)
        for index, trial in enumerate(self.job.trials):
            self.journal.trial = index
            event = self.attempt(index, trial, trial_request(example, self.job.options, trial))
            self.send(event)
            if isinstance(event, Refused) or event.out_of_memory or self.models is None:
                return

    def attempt(self, index: int, trial: Trial, request: GenerationRequest) -> Finished | Refused:
        """Load the models, if they are not loaded yet, and generate once."""
        self.journal.intervals.clear()
        position = len(self.collector.readable_spans)
        release_memory()
        result: GenerationResult | None = None
        error: Exception | None = None
        card = {} if self.job.card is None else card_attributes(self.job.card)
        try:
            with annotated({**trial_attributes(trial), **card}), TemporaryDirectory() as folder:
                if self.models is None:
                    with setup_errors():
                        placement = asked_placement(str(self.device), trial)
                        selection = trial_selection(self.job.options, trial, placement, self.job.songs)
                        self.models = load_models(selection)
                result = generate_music(self.models, request, save_dir=Path(folder))
        except SetupError as refused:
            return Refused(Failure.of(refused.__cause__ or refused))
        except Exception as raised:
            error = raised
            if not isinstance(error, AceStepError):
                # A defect: the traceback is printed, because the row has no field for it.
                traceback.print_exception(error)
        flush_telemetry()
        spans = self.collector.finished_since(position)
        run = next(iter(measured_runs(spans)), None)
        # A device that has failed cannot be queried.
        broken = isinstance(error, BackendFailed)
        memory = None if broken else memory_use(self.device, self.view, self.watch, spans, self.journal.intervals)
        return Finished(
            trial=index,
            failure=None if error is None else Failure.of(error),
            out_of_memory=error is not None and ran_out_of_memory(error),
            observation=Observation(
                device=str(self.device),
                cap=self.cap,
                initialised=self.models is not None,
                figures=None if run is None or error is not None else Figures.of(Breakdown.of(run)),
                memory=memory,
                audio=None if result is None else audio_facts(result),
                run=RunResult(run, None if result is None else result.effective, error).to_json(),
            ),
        )


def audio_facts(result: GenerationResult) -> AudioFacts:
    """Properties of the generated songs, from their samples."""
    return AudioFacts(
        songs=len(result.songs),
        durations=tuple(song.audio.shape[-1] / SAMPLE_RATE for song in result.songs),
        finite=all(bool(torch.isfinite(song.audio).all()) for song in result.songs),
        quietest=min(float(song.audio.abs().max()) for song in result.songs),
        thought=sum(bool(song.audio_codes) for song in result.songs),
    )


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, is a lack of memory; some libraries only have a message for it."""
    while error is not None:
        if isinstance(error, (OutOfMemory, BudgetExceeded, torch.OutOfMemoryError, MemoryError)):
            return True
        if any(words in str(error) for words in _OUT_OF_MEMORY_WORDS):
            return True
        error = error.__cause__
    return False


if __name__ == "__main__":
    main()
