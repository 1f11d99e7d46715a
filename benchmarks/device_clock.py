"""Do the spans say what the GPU did? Compares them with torch.profiler's kernel timeline, per stage and per step.

Both look at the same run. The profiler's side is Kineto's GPU ranges: from the first to the last kernel launched
inside a range that this script opens around the same calls. The spans' side is what the tracing layer exported.

    python -m benchmarks.device_clock --device cuda --weights synthetic --thinking --duration 30
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import wrapt
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from torch.profiler import ProfilerActivity, profile, record_function

from acestep.inference import generate_music
from acestep.planner.backends.pt import PtBackend
from acestep.renderer.decoder import VaeDecoder
from acestep.renderer.renderer import Renderer
from acestep_otel import semconv
from acestep_otel.instrumentor import AceStepInstrumentor
from benchmarks.environment import add_model_options, environment, write_result
from benchmarks.workload import load, request

STAGES = {
    (Renderer, "condition"): semconv.CONDITION,
    (Renderer, "denoise_step"): semconv.DIT_STEP,
    (VaeDecoder, "decode_tile"): semconv.VAE_TILE,
}
"""Methods, and the spans around them."""
PASSES = ((PtBackend, "prefill"), (PtBackend, "decode"))
"""Methods that together make up `acestep.lm`."""

Interval = tuple[float, float]
"""Start and end in seconds."""


@contextmanager
def profiler_ranges() -> Iterator[None]:
    """Open a profiler range around each of these methods, inside whatever else wraps it."""
    originals = {(owner, name): vars(owner)[name] for owner, name in (*STAGES, *PASSES)}

    def ranged(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        with record_function(f"stage::{type(instance).__name__}.{wrapped.__name__}"):
            return wrapped(*args, **kwargs)

    for (owner, name), original in originals.items():
        setattr(owner, name, wrapt.FunctionWrapper(original, ranged))
    try:
        yield
    finally:
        for (owner, name), original in originals.items():
            setattr(owner, name, original)


def gpu_ranges(trace: Path) -> dict[str, list[Interval]]:
    """Every GPU-side range, by class and method name, in time order."""
    events = json.loads(trace.read_text())["traceEvents"]
    found = defaultdict(list)
    for event in sorted((e for e in events if e.get("cat") == "gpu_user_annotation"), key=lambda e: e["ts"]):
        if event["name"].startswith("stage::"):
            start = event["ts"] / 1e6
            found[event["name"].removeprefix("stage::")].append((start, start + event["dur"] / 1e6))
    return found


def compared(name: str, spans: list[Interval], kernels: list[Interval]) -> dict[str, Any]:
    """One row of the result."""
    if len(spans) != len(kernels):
        raise SystemExit(f"{name}: {len(spans)} spans but {len(kernels)} profiler ranges")
    mine, theirs = ([end - start for start, end in intervals] for intervals in (spans, kernels))
    differences = [a - b for a, b in zip(mine, theirs, strict=True)]
    return {
        "span": name,
        "count": len(spans),
        "span_seconds": sum(mine),
        "profiler_seconds": sum(theirs),
        "ratio": sum(mine) / sum(theirs),
        "median_difference_ms": statistics.median(differences) * 1e3,
        "largest_difference_ms": max(map(abs, differences)) * 1e3,
    }


def envelope(intervals: list[Interval]) -> list[Interval]:
    """From the first start to the last end."""
    return [(min(start for start, _ in intervals), max(end for _, end in intervals))]


def main() -> None:
    """Run once under both, print a row per stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this comparison needs a CUDA device")

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    models, song = load(options), request(options)
    with profiler_ranges(), tempfile.TemporaryDirectory() as folder:
        instrumentor = AceStepInstrumentor()
        instrumentor.instrument(tracer_provider=provider)
        generate_music(models, song)
        exporter.clear()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            generate_music(models, song)
        instrumentor.uninstrument()
        profiler.export_chrome_trace(str(Path(folder) / "trace.json"))
        kernels = gpu_ranges(Path(folder) / "trace.json")

    spans = defaultdict(list)
    for span in sorted(exporter.get_finished_spans(), key=lambda span: span.start_time or 0):
        spans[span.name].append(((span.start_time or 0) / 1e9, (span.end_time or 0) / 1e9))
    rows = [
        compared(name, spans[name], kernels[f"{owner.__name__}.{method}"]) for (owner, method), name in STAGES.items()
    ]
    # Ranges of the profiler do not nest on the GPU's side, so a stage is what its parts span.
    rows.insert(1, compared(semconv.DIT, spans[semconv.DIT], envelope(kernels["Renderer.denoise_step"])))
    if options.thinking:
        passes = [interval for owner, method in PASSES for interval in kernels[f"{owner.__name__}.{method}"]]
        rows.insert(0, compared(semconv.LM, spans[semconv.LM], envelope(passes)))

    titles = ("count", "span s", "profiler s", "ratio", "median diff ms", "max diff ms")
    print(f"{'span':24} {titles[0]:>5} {titles[1]:>9} {titles[2]:>10} {titles[3]:>7} {titles[4]:>14} {titles[5]:>12}")
    for row in rows:
        print(
            f"{row['span']:24} {row['count']:>5} {row['span_seconds']:>9.4f} {row['profiler_seconds']:>10.4f} "
            f"{row['ratio']:>7.4f} {row['median_difference_ms']:>14.3f} {row['largest_difference_ms']:>12.3f}"
        )
    write_result(options.output, {"environment": environment(), "rows": rows})


if __name__ == "__main__":
    main()
