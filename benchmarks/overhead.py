"""What does tracing cost a song? Off, sampled out, stage, step and token, against no, a live and a dead collector.

    python -m benchmarks.overhead                                                              # tiny models, CPU
    python -m benchmarks.overhead --device cuda --weights synthetic --compile --duration 240   # true size, GPU

A round is sixteen cases of three songs each: `--minutes` ends a run with the rounds that are complete by then.

All cases take turns in one process, in a different order each round, and each song is compared with the untraced song
of its own round. Four figures, per song:

* added: wall time beyond the untraced song until it returns, median and 99th percentile over the rounds. On a host that
  does other work it varies by more than tracing costs.
* in layer: processor time that the calling thread spends in the layer's own functions, measured in separate songs.
  Precise on any host; without the bare wrappers, half a microsecond a call. The JSON has it by function.
* CPU: processor time of the whole process beyond the untraced song, until its spans and metrics have been created on
  the background thread, the exporter's thread included; median.
* blocks: memory blocks that a song leaves behind until its telemetry is exported.
"""

from __future__ import annotations

import argparse
import gc
import logging
import math
import random
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

from acestep.inference import generate_music
from acestep_otel.instrumentor import AceStepInstrumentor
from acestep_otel.shutdown import deliver_within
from benchmarks.accounting import accounted
from benchmarks.arguments import minutes, whole_number
from benchmarks.collectors import dead_collector, live_collector
from benchmarks.environment import add_model_options, environment, write_result
from benchmarks.workload import prepare

DETAILS: Final = ("off", "sampled out", "stage", "step", "token")
COLLECTORS: Final = ("none", "live", "dead")


@dataclass(frozen=True, slots=True)
class Sample:
    """One song: wall seconds, processor seconds of the process, blocks left behind, seconds by function."""

    wall: float
    cpu: float
    blocks: int
    functions: dict[str, float]

    @property
    def in_layer(self) -> float:
        """Seconds in the layer."""
        return sum(self.functions.values())


class Case:
    """A detail level and a collector, with separate providers that exist as long as the benchmark."""

    def __init__(self, detail: str, collector: str, endpoint: str | None) -> None:
        self.detail = detail
        self.collector = collector
        self._provider = TracerProvider(
            sampler=ALWAYS_OFF if detail == "sampled out" else ALWAYS_ON, shutdown_on_exit=False
        )
        self._exporter = None if endpoint is None else OTLPSpanExporter(endpoint=endpoint, insecure=True, timeout=2)
        if self._exporter is not None:
            self._provider.add_span_processor(BatchSpanProcessor(self._exporter, schedule_delay_millis=200))
        self._meter_provider = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)

    @contextmanager
    def instrumented(self) -> Iterator[None]:
        """The case switched on."""
        detail = {"sampled out": "step"}.get(self.detail, self.detail)
        AceStepInstrumentor().instrument(
            tracer_provider=self._provider, meter_provider=self._meter_provider, detail=detail
        )
        try:
            yield
        finally:
            AceStepInstrumentor().uninstrument()

    def close(self) -> None:
        """End the case's threads."""
        exporters = [] if self._exporter is None else [self._exporter.shutdown]
        deliver_within(1, [lambda _: self._provider.shutdown()], exporters, report=lambda _: None)


def measured(models: Any, song: Any) -> Sample:
    """Generate a song twice: the first one fills caches, as a service does once; the second is measured."""
    flush = AceStepInstrumentor().flush
    generate_music(models, song)
    flush()
    gc.collect()
    gc.disable()
    try:
        blocks, cpu, start = sys.getallocatedblocks(), time.process_time(), time.perf_counter()
        result = generate_music(models, song)
        wall = time.perf_counter() - start
        flush()
        cpu, blocks = time.process_time() - cpu, sys.getallocatedblocks() - blocks
        del result
    finally:
        gc.enable()
    with accounted() as spent:
        generate_music(models, song)
    flush()
    return Sample(wall, cpu, blocks, dict(spent))


def percentile(values: list[float], share: float) -> float:
    """The value that a share of the values does not exceed (nearest rank)."""
    ranked = sorted(values)
    return ranked[max(0, -(-int(share * 100) * len(ranked) // 100) - 1)]


def summary(case: Case, samples: list[Sample], plain: list[Sample]) -> dict[str, Any]:
    """One row."""
    added = [(sample.wall - other.wall) * 1e3 for sample, other in zip(samples, plain, strict=True)]
    in_layer = [sample.in_layer * 1e3 for sample in samples]
    return {
        "detail": case.detail,
        "collector": case.collector,
        "song_median_seconds": statistics.median(sample.wall for sample in samples),
        "added_ms": {"p50": statistics.median(added), "p99": percentile(added, 0.99)},
        "in_layer_ms": {"p50": statistics.median(in_layer), "p99": percentile(in_layer, 0.99)},
        "functions_ms": {
            name: statistics.median(sample.functions.get(name, 0.0) * 1e3 for sample in samples)
            for name in samples[0].functions
        },
        "added_cpu_ms": statistics.median((a.cpu - b.cpu) * 1e3 for a, b in zip(samples, plain, strict=True)),
        "added_blocks": statistics.median(a.blocks - b.blocks for a, b in zip(samples, plain, strict=True)),
    }


def main() -> None:
    """Take turns, then print a row per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--rounds", type=whole_number, default=15, help="songs of each case that are compared")
    parser.add_argument("--minutes", type=minutes, default=math.inf, help="after these no further round begins")
    options = parser.parse_args()
    models, song = prepare(options)
    # The dead collector is meant to be dead.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    if options.device.type == "cpu" or not torch.cuda.is_available():
        torch.set_num_threads(1)

    with ExitStack() as stack:
        endpoints = {
            "none": None,
            "live": stack.enter_context(live_collector()),
            "dead": stack.enter_context(dead_collector()),
        }
        cases = [Case(detail, name, endpoints[name]) for detail in DETAILS for name in COLLECTORS]
        for case in cases:
            stack.callback(case.close)
        generate_music(models, song)
        order = random.Random(0)
        plain: list[Sample] = []
        samples: dict[Case, list[Sample]] = {case: [] for case in cases}
        deadline = time.monotonic() + 60 * options.minutes
        while len(plain) < options.rounds and (not plain or time.monotonic() < deadline):
            plain.append(measured(models, song))
            for case in order.sample(cases, len(cases)):
                with case.instrumented():
                    samples[case].append(measured(models, song))
        rows = [summary(case, samples[case], plain) for case in cases]
    song_seconds = statistics.median(sample.wall for sample in plain)
    print(f"song without tracing: {song_seconds:.3f} s, {len(plain)} rounds; milliseconds per song")
    titles = ("added p50", "added p99", "in layer p50", "in layer p99", "share", "CPU", "blocks")
    print(f"{'detail':12} {'collector':10}" + "".join(f"{title:>14}" for title in titles))
    for row in rows:
        share = row["in_layer_ms"]["p50"] / 1e3 / song_seconds
        figures = (
            *(f"{row[figure][rank]:.2f}" for figure in ("added_ms", "in_layer_ms") for rank in ("p50", "p99")),
            f"{share:.3%}",
            f"{row['added_cpu_ms']:.2f}",
            f"{row['added_blocks']:.0f}",
        )
        print(f"{row['detail']:12} {row['collector']:10}" + "".join(f"{figure:>14}" for figure in figures))
    result = {"rounds": len(plain), "song_median_seconds": song_seconds, "rows": rows}
    write_result(options.output, {"environment": environment(), **result})


if __name__ == "__main__":
    main()
