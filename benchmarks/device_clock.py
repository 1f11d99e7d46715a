"""Do the spans say what the GPU did? Compares every one of them with torch.profiler's kernel timeline.

    python -m benchmarks.device_clock --device cuda --weights synthetic --thinking --duration 30
    python -m benchmarks.device_clock --device cuda --weights synthetic --thinking --duration 30 --compile
    python -m benchmarks.device_clock --device cuda --weights synthetic --duration 30 --captured
    python -m benchmarks.device_clock --device cuda --weights synthetic --duration 30 --streams 2

Both look at the same run. The spans' side is what the tracing layer exported. The profiler's side is CUPTI's: from the
first to the last piece of GPU work that was launched inside a range around the same call, whatever stream it ran on and
whether it was launched alone or in a replayed graph. With two streams, two songs are made at once, each in a thread
with a stream of its own. `--captured` replays the diffusion transformer as a CUDA graph.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import threading
from collections import defaultdict
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from opentelemetry.metrics import NoOpMeter
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile, record_function

from acestep.inference import generate_music
from acestep_otel import semconv
from acestep_otel.recording.call import Call
from acestep_otel.recording.layer import TracingLayer
from acestep_otel.recording.stages import RequestRecording, Stage, current_recording
from acestep_otel.settings import Settings
from acestep_otel.targets import acestep
from acestep_otel.targets.seam import Patches
from benchmarks.captured import captured
from benchmarks.environment import add_model_options, environment, write_result
from benchmarks.gpu_timeline import Interval, device_intervals, load_events
from benchmarks.workload import load, request

RANGE: Final = "acestep-range-"
NUMBER: Final = "benchmark.range"
"""Attribute that holds the number of the span's range."""
COMPARED: Final = (
    semconv.LM_COT,
    semconv.LM_CODES,
    semconv.CONDITION,
    semconv.DIT,
    semconv.DIT_STEP,
    semconv.VAE_TILE,
)
ALLOWED_SHARE: Final = 0.02
ALLOWED_SECONDS: Final = 50e-6
_PATIENCE_SECONDS: Final = 10.0


class RangedLayer(TracingLayer):
    """The tracing layer with a profiler range around each call, inside the span's marks."""

    _numbers = itertools.count()

    def stage(self, name: str, call: Call, **details: Any) -> Any:
        """Run a call as a stage, in a range that the stage's number names."""
        return super().stage(name, Call(partial(self._ranged, call), None, (), {}), **details)

    def _begin(self, recording: RequestRecording, name: str, device_clock: bool, tracks_memory: bool) -> Any:
        stage = super()._begin(recording, name, device_clock, tracks_memory)
        if isinstance(stage, Stage):
            stage.attributes[NUMBER] = next(self._numbers)
        return stage

    def _ranged(self, call: Call) -> Any:
        recording = current_recording()
        if recording is None or NUMBER not in recording.innermost.attributes:
            return call.run()
        with record_function(f"{RANGE}{recording.innermost.attributes[NUMBER]}"):
            return call.run()


def rows_of(spans: list[ReadableSpan], kernels: dict[str, Interval]) -> list[dict[str, Any]]:
    """One row per kind of span: how far its spans are from their own kernels."""
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for span in spans:
        interval = kernels.get(str((span.attributes or {}).get(NUMBER)))
        if interval is not None and span.name in COMPARED:
            pairs[span.name].append((((span.end_time or 0) - (span.start_time or 0)) / 1e9, interval[1] - interval[0]))
    return [compared(name, pairs[name]) for name in COMPARED if name in pairs]


def compared(name: str, pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """A row, from pairs of the span's and the profiler's seconds."""
    differences = [mine - theirs for mine, theirs in pairs]
    close = [abs(mine - theirs) <= max(ALLOWED_SHARE * theirs, ALLOWED_SECONDS) for mine, theirs in pairs]
    return {
        "span": name,
        "count": len(pairs),
        "span_seconds": sum(mine for mine, _ in pairs),
        "profiler_seconds": sum(theirs for _, theirs in pairs),
        "ratio": sum(mine for mine, _ in pairs) / sum(theirs for _, theirs in pairs),
        "median_difference_ms": statistics.median(differences) * 1e3,
        "largest_difference_ms": max(map(abs, differences)) * 1e3,
        "within_2_percent_or_50_us": sum(close),
    }


def make_songs(models: Any, song: Any, streams: int) -> None:
    """One song on the current stream, or several at once on streams of their own."""
    if streams == 1:
        generate_music(models, song)
        return

    def one() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            generate_music(models, song)

    threads = [threading.Thread(target=one) for _ in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    """Run under both, print a row per kind of span."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--captured", action="store_true", help="replay the diffusion transformer as a CUDA graph")
    parser.add_argument("--streams", type=int, default=1, help="songs made at once, each on a stream of its own")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this comparison needs a CUDA device")
    if options.captured and options.streams > 1:
        parser.error("a recorded graph has one set of buffers: leave out --captured or --streams")

    exporter, patches = InMemorySpanExporter(), Patches()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    layer = RangedLayer(provider.get_tracer("benchmark"), NoOpMeter("benchmark"), Settings(), run_id="benchmark")
    models, song = load(options), request(options)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if options.captured:
            stack.enter_context(captured(models.renderer.models.transformer))
        # As many songs before the measured ones as there are shapes to compile and graphs to record.
        for _ in range(2):
            make_songs(models, song, options.streams)
        patches.apply(acestep.seams(layer))
        stack.callback(patches.remove)
        make_songs(models, song, options.streams)
        # Spans of a song that came back before the device was done follow later.
        layer.finish(_PATIENCE_SECONDS)
        exporter.clear()
        with profile(
            activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA],
            experimental_config=_ExperimentalConfig(profile_all_threads=True),
        ) as profiler:
            make_songs(models, song, options.streams)
        layer.finish(_PATIENCE_SECONDS)
        profiler.export_chrome_trace(str(folder / "trace.json"))
        kernels = device_intervals(load_events(folder / "trace.json"), RANGE)

    rows = rows_of(list(exporter.get_finished_spans()), kernels)
    titles = ("count", "span s", "profiler s", "ratio", "median diff ms", "max diff ms", "2 % or 50 us")
    print(f"{'span':20}" + "".join(f"{title:>15}" for title in titles))
    for row in rows:
        figures = (
            row["count"],
            f"{row['span_seconds']:.4f}",
            f"{row['profiler_seconds']:.4f}",
            f"{row['ratio']:.4f}",
            f"{row['median_difference_ms']:.3f}",
            f"{row['largest_difference_ms']:.3f}",
            f"{row['within_2_percent_or_50_us']} of {row['count']}",
        )
        print(f"{row['span']:20}" + "".join(f"{figure:>15}" for figure in figures))
    write_result(options.output, {"environment": environment(), "rows": rows})


if __name__ == "__main__":
    main()
