"""What does tracing cost? The same song at detail `step` and not instrumented, in one process, taking turns.

    python benchmarks/overhead.py                                                        # tiny models, CPU
    python benchmarks/overhead.py --device cuda --weights synthetic --duration 240       # true size, GPU

Spans go to a batch processor with an exporter that throws them away: the cost of making them is in, the network is
not. Two clocks are compared. Wall time is what a user waits, and is noisy where the host is shared. CPU time of the
calling thread is what the layer adds to the work of the host, and is what wall time grows by when the host is the
bottleneck. The interval is a bootstrap of the median over pairs.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from environment import add_model_options, environment, write_result
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from workload import load, request

from acestep.inference import generate_music
from acestep_otel.instrumentor import AceStepInstrumentor


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds of one song: wall time, and CPU time of the calling thread."""

    wall: float
    cpu: float


class Discard(SpanExporter):
    """Throws spans away."""

    def export(self, _spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Report success."""
        return SpanExportResult.SUCCESS


def main() -> None:
    """Alternate, then print both medians and the ratio of each pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--pairs", type=int, default=15, help="pairs of runs")
    parser.add_argument("--detail", default="step", choices=["stage", "step", "token"])
    options = parser.parse_args()
    if options.device == "cpu" or not torch.cuda.is_available():
        torch.set_num_threads(1)

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Discard()))
    meter_provider = MeterProvider([InMemoryMetricReader()])
    models, song = load(options), request(options)

    def run(instrumented: bool) -> Sample:
        instrumentor = AceStepInstrumentor()
        if instrumented:
            instrumentor.instrument(tracer_provider=provider, meter_provider=meter_provider, detail=options.detail)
        try:
            # The first run after a switch pays for caches that a service pays for once.
            generate_music(models, song)
            gc.collect()
            wall, cpu = time.perf_counter(), time.thread_time()
            generate_music(models, song)
            return Sample(time.perf_counter() - wall, time.thread_time() - cpu)
        finally:
            if instrumented:
                instrumentor.uninstrument()

    shuffle = random.Random(0)
    pairs: list[tuple[Sample, Sample]] = []
    for _ in range(options.pairs):
        samples = {instrumented: run(instrumented) for instrumented in shuffle.sample([False, True], 2)}
        pairs.append((samples[False], samples[True]))
    result = {
        "detail": options.detail,
        "pairs": options.pairs,
        "wall": summary([(plain.wall, traced.wall) for plain, traced in pairs]),
        "thread_cpu": summary([(plain.cpu, traced.cpu) for plain, traced in pairs]),
    }
    print(f"{'':12}{'plain s':>10}{'traced s':>10}{'added ms':>10}{'ratio':>9}   95 % interval of the ratio")
    for clock in ("wall", "thread_cpu"):
        row = result[clock]
        low, high = row["ratio_interval_95"]
        print(
            f"{clock:12}{row['plain_median_seconds']:>10.4f}{row['traced_median_seconds']:>10.4f}"
            f"{row['added_median_ms']:>10.3f}{row['ratio_median']:>9.4f}   {low:.4f} ... {high:.4f}"
        )
    write_result(options.output, {"environment": environment(), **result})


def summary(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Medians over pairs of (plain, traced), with a bootstrap interval of the ratio's median."""
    ratios = [traced / plain for plain, traced in pairs]
    draw = random.Random(1)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(2_000))
    return {
        "plain_median_seconds": statistics.median(plain for plain, _ in pairs),
        "traced_median_seconds": statistics.median(traced for _, traced in pairs),
        "added_median_ms": statistics.median(traced - plain for plain, traced in pairs) * 1e3,
        "ratio_median": statistics.median(ratios),
        "ratio_interval_95": [medians[49], medians[1949]],
    }


if __name__ == "__main__":
    main()
