"""Data for the boards: real tiny runs, a service with errors, and a tier test as one GPU saw it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from acestep.checkpoints import TINY_DIT, Models
from acestep.errors import AceStepError, OutOfMemory
from acestep.inference import generate_music
from acestep.renderer.renderer import Renderer
from acestep.types import GenerationRequest
from acestep_otel import semconv
from acestep_otel.profiler.benchmark.matrix import Failure, Figures
from acestep_otel.profiler.cli import main
from acestep_otel.profiler.options import Options
from acestep_otel.profiler.telemetry.providers import Telemetry, instrumented
from acestep_otel.profiler.tier_test.outputs import Outputs, record_row
from acestep_otel.profiler.tier_test.plan import Plan
from acestep_otel.profiler.tier_test.trials import GIB, Observation, TierResult
from acestep_otel.queue_telemetry import QueueTelemetry
from acestep_otel.recording import stage_work
from acestep_otel.recording.gpu_metrics import Card, GpuWatch
from acestep_otel.recording.instruments import Instruments
from acestep_otel.recording.vram import VramPeak, VramReading, VramTracker
from acestep_otel.roofline.peaks import Peaks
from acestep_otel.settings import Detail
from tests.profiler.tier_test.tier_rows import memory_use

PROFILES = ("before", "after")
BENCHMARKS = ("bench-a", "bench-b")
TIERS = "tiers"
HOST = "gpu-1"
SERVICE = "studio"
ENDED = (*PROFILES, *BENCHMARKS, TIERS)
"""Runs that are over when they are looked at."""
SHORT = ("--tiny", "--duration", "10", "--inference-steps", "2", "--no-progress")


@dataclass(frozen=True)
class Service:
    """What a service has around the engine."""

    telemetry: Telemetry
    queue: QueueTelemetry


def profile(endpoint: str, folder: Path, name: str) -> None:
    """``--mode profile`` with both phases of the language model; its GPU's memory is made up."""
    with _named(name), _gpu_memory(), _known_peaks():
        arguments = (*SHORT, "--thinking", "--use-cot-metas", "--otlp-endpoint", endpoint)
        assert main([*arguments, "--output-dir", str(folder)]) == 0


def benchmark(endpoint: str, folder: Path, name: str) -> None:
    """``--mode benchmark``, two cells."""
    with _named(name):
        arguments = (*SHORT, "--mode", "benchmark", "--batch-size", "1", "--otlp-endpoint", endpoint)
        assert main([*arguments, "--output-dir", str(folder)]) == 0


def tier_test(endpoint: str) -> None:
    """What ``--mode tier-test`` records: its own plan and recorders, with rows as a GPU makes them."""
    options = Options(
        mode="tier-test", tiers=(8, 24), tier_boundary=True, tier_batch_boundary=True, tier_with_lm=True, tiny=True
    )
    plan = Plan.of(options, 8)
    rows = []
    with _named(TIERS), Telemetry(endpoint=endpoint) as telemetry:
        instruments = Instruments(telemetry.meter_provider.get_meter("acestep_otel"))
        for trial in (row.trial for row in plan.rows if row.skipped is None):
            seen = Observation("cuda:0", None, True, Figures(3.0, 1.0, 1.0, 0.5), memory_use(6.0))
            failure = None if trial.batch_size < 8 else Failure("OutOfMemory", "no room", "dit")
            rows.append(TierResult(trial, "ok" if failure is None else "out_of_memory", failure, seen))
            record_row(instruments, rows[-1])
        Outputs(options, plan).record_boundaries(instruments, rows)


@contextmanager
def service(endpoint: str) -> Iterator[Service]:
    """A process that goes on, traced by the layer, with a queue; its GPU's figures are made up where there is none."""
    driver = SimpleNamespace(
        nvmlDeviceGetUtilizationRates=lambda _: SimpleNamespace(gpu=75),
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(used=12 * GIB, total=80 * GIB),
        # 300 W, in millijoules.
        nvmlDeviceGetTotalEnergyConsumption=lambda _: round(300_000 * time.monotonic()),
    )
    card = Card(driver, None, "GPU-0", "NVIDIA H100")
    with (
        _named(SERVICE),
        _gpu_memory(),
        patch.object(GpuWatch, "_known", lambda *_: [card]),
        Telemetry(endpoint=endpoint) as telemetry,
        instrumented(telemetry, Detail.STEP),
    ):
        # What the SDK counts where it is asked to; the exporter is not of interest here.
        with patch.dict(os.environ, {"OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED": "true"}):
            counting = BatchSpanProcessor(InMemorySpanExporter(), meter_provider=telemetry.meter_provider)
        telemetry.tracer_provider.add_span_processor(counting)
        queue = QueueTelemetry(8, tracer_provider=telemetry.tracer_provider, meter_provider=telemetry.meter_provider)
        yield Service(telemetry, queue)


def serve(service: Service, models: Models, songs: int) -> None:
    """Make songs that have waited, every third one without success, turn one caller away, and send the metrics."""
    request = GenerationRequest(
        caption="slow piano",
        lyrics="[Verse]\nhome",
        duration=10.0,
        inference_steps=2,
        thinking=True,
        use_cot_metas=True,
    )
    for song in range(songs):
        waiting = service.queue.enter()
        waiting.leave()
        with suppress(AceStepError), _failing() if song % 3 == 2 else _succeeding():
            waiting.context.run(generate_music, models, request)
        _what_only_a_gpu_has(service)
        service.telemetry.meter_provider.force_flush()
        service.telemetry.tracer_provider.force_flush()
        time.sleep(0.5)
    service.queue.reject()


def _what_only_a_gpu_has(service: Service) -> None:
    """Energy, a stall, and a request past its deadline, under the names that the layer gives them."""
    instruments = Instruments(service.telemetry.meter_provider.get_meter("acestep_otel"))
    dit = {semconv.REQUEST_MODEL: TINY_DIT, semconv.STAGE: "dit.step"}
    instruments.record(semconv.AUDIO_ENERGY, 400.0, dit)
    instruments.record(semconv.STALLS, 1, {**dit, semconv.STALL_CAUSE: "allocator"})
    instruments.record(semconv.HANGS, 1, {**dit, semconv.STAGE: "generate_music", semconv.HANG_STAGE: "vae.decode"})


@contextmanager
def _known_peaks() -> Iterator[None]:
    """A device whose peaks are known."""
    with patch.object(stage_work, "peaks_of", lambda _: Peaks({"float32": 1e12}, 1e11, "measured")):
        yield


@contextmanager
def _failing() -> Iterator[None]:
    def full(*_: object, **__: object) -> None:
        raise OutOfMemory("no room for 3 GiB", stage="dit")

    with patch.object(Renderer, "predict_velocity", full):
        yield


@contextmanager
def _succeeding() -> Iterator[None]:
    yield


@contextmanager
def _gpu_memory() -> Iterator[None]:
    """A GPU's memory, almost full."""
    peak = VramPeak(4 * GIB, 98 * GIB // 10, shared=False)
    with (
        patch.object(VramTracker, "read", lambda *_: VramReading(4 * GIB, 98 * GIB // 10, peak)),
        patch.object(VramTracker, "limit", lambda *_: 10 * GIB),
    ):
        yield


@contextmanager
def _named(service: str) -> Iterator[None]:
    with patch.dict(os.environ, {"OTEL_SERVICE_NAME": service, "OTEL_RESOURCE_ATTRIBUTES": f"host.name={HOST}"}):
        yield
