"""What does tracing cost? Song time at detail `step` against not instrumented, in one process, taking turns.

    python benchmarks/overhead.py                                          # tiny models, CPU
    python benchmarks/overhead.py --device cuda --weights synthetic        # true size, GPU

Spans go to a batch processor with an exporter that throws them away, so the cost of making them is in, and the
network is not.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence

import torch
from environment import add_model_options, environment, write_result
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from workload import load, request

from acestep.inference import generate_music
from acestep_otel.instrumentor import AceStepInstrumentor


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

    def seconds(instrumented: bool) -> float:
        instrumentor = AceStepInstrumentor()
        if instrumented:
            instrumentor.instrument(tracer_provider=provider, meter_provider=meter_provider, detail=options.detail)
        try:
            start = time.perf_counter()
            generate_music(models, song)
            return time.perf_counter() - start
        finally:
            if instrumented:
                instrumentor.uninstrument()

    for instrumented in (False, True, False, True):
        seconds(instrumented)
    shuffle = random.Random(0)
    plain: list[float] = []
    traced: list[float] = []
    for _ in range(options.pairs):
        order = [False, True]
        shuffle.shuffle(order)
        for instrumented in order:
            (traced if instrumented else plain).append(seconds(instrumented))
    ratios = sorted(b / a for a, b in zip(plain, traced, strict=True))
    result = {
        "pairs": options.pairs,
        "detail": options.detail,
        "plain_median_seconds": statistics.median(plain),
        "traced_median_seconds": statistics.median(traced),
        "added_median_ms": statistics.median(b - a for a, b in zip(plain, traced, strict=True)) * 1e3,
        "ratio_of_medians": statistics.median(traced) / statistics.median(plain),
        "ratio_of_minima": min(traced) / min(plain),
        "pair_ratio_quartiles": [ratios[len(ratios) // 4], statistics.median(ratios), ratios[3 * len(ratios) // 4]],
    }
    for name, value in result.items():
        print(f"{name:24} {value if not isinstance(value, float) else f'{value:.5f}'}")
    write_result(options.output, {"environment": environment(), **result})


if __name__ == "__main__":
    main()
