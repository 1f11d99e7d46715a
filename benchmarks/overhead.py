"""What does tracing cost? The same song at detail `step` and not instrumented, in one process, taking turns.

    python -m benchmarks.overhead                                                        # tiny models, CPU
    python -m benchmarks.overhead --device cuda --weights synthetic --duration 240       # true size, GPU

Spans go to a batch processor with an exporter that throws them away: the cost of making them is in, the network is
not. Two figures are given. The first compares wall time of pairs of songs; its interval is a bootstrap of the median
over pairs, wide where the host is shared. The second adds up the time that the calling thread spends in the layer's
own functions during further songs: it leaves out the bare wrappers (half a microsecond per wrapped call), and is
precise on any host.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import wrapt
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from acestep.inference import generate_music
from acestep_otel.instrumentor import AceStepInstrumentor
from acestep_otel.recording.clock import CudaEventClock, HostClock
from acestep_otel.recording.layer import TracingLayer
from benchmarks.environment import add_model_options, environment, write_result
from benchmarks.workload import load, request

LAYER = (
    *((TracingLayer, name) for name in ("_start", "_finish", "_begin", "_end", "_describe")),
    (HostClock, "mark"),
    (CudaEventClock, "mark"),
)
"""Everything that the layer does on the calling thread, but for the wrappers themselves."""
ACCOUNTED_SONGS = 5


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

    def run(instrumented: bool) -> float:
        instrumentor = AceStepInstrumentor()
        if instrumented:
            instrumentor.instrument(tracer_provider=provider, meter_provider=meter_provider, detail=options.detail)
        try:
            # The first run after a switch pays for caches that a service pays for once.
            generate_music(models, song)
            gc.collect()
            start = time.perf_counter()
            generate_music(models, song)
            return time.perf_counter() - start
        finally:
            if instrumented:
                instrumentor.uninstrument()

    shuffle = random.Random(0)
    pairs: list[tuple[float, float]] = []
    for _ in range(options.pairs):
        seconds = {instrumented: run(instrumented) for instrumented in shuffle.sample([False, True], 2)}
        pairs.append((seconds[False], seconds[True]))
    with accounted() as spent:
        for _ in range(ACCOUNTED_SONGS):
            run(True)
    result = {"detail": options.detail, "pairs": options.pairs, "wall": summary(pairs)}
    result["in_layer_ms_by_function"] = {name: spent[name] / (2 * ACCOUNTED_SONGS) * 1e3 for name in sorted(spent)}
    result["in_layer_ms"] = sum(result["in_layer_ms_by_function"].values())
    result["in_layer_share"] = result["in_layer_ms"] / 1e3 / result["wall"]["plain_median_seconds"]
    row = result["wall"]
    low, high = row["ratio_interval_95"]
    print(f"not instrumented, median    {row['plain_median_seconds']:.4f} s")
    print(f"detail {options.detail}, median         {row['traced_median_seconds']:.4f} s")
    print(f"ratio of pairs, median      {row['ratio_median']:.4f}   (95 % interval {low:.4f} ... {high:.4f})")
    for name, milliseconds in result["in_layer_ms_by_function"].items():
        print(f"    {name:24}{milliseconds:.3f} ms")
    print(f"time in the layer per song  {result['in_layer_ms']:.3f} ms  ({result['in_layer_share']:.3%} of the song)")
    write_result(options.output, {"environment": environment(), **result})


@contextmanager
def accounted() -> Iterator[Mapping[str, float]]:
    """Add up the seconds that the calling thread spends in the layer's functions, each moment once."""
    spent: dict[str, float] = defaultdict(float)
    depth = [0]

    def timed(wrapped: Any, _instance: Any, args: Any, kwargs: Any) -> Any:
        depth[0] += 1
        start = time.perf_counter()
        try:
            return wrapped(*args, **kwargs)
        finally:
            depth[0] -= 1
            if depth[0] == 0:
                spent[wrapped.__name__] += time.perf_counter() - start

    originals = {(owner, name): vars(owner)[name] for owner, name in LAYER}
    for (owner, name), original in originals.items():
        setattr(owner, name, wrapt.FunctionWrapper(original, timed))
    try:
        yield spent
    finally:
        for (owner, name), original in originals.items():
            setattr(owner, name, original)


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
