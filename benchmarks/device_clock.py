"""Do the spans match what the GPU did? Compares each of them with torch.profiler's kernel timeline.

    python -m benchmarks.device_clock --device cuda --weights synthetic --thinking --duration 30
    python -m benchmarks.device_clock --device cuda --weights synthetic --thinking --duration 30 --plain
    python -m benchmarks.device_clock --device cuda --weights synthetic --duration 30 --plain --compile
    python -m benchmarks.device_clock --device cuda --weights synthetic --duration 30 --streams 2

Both look at the same run. The spans' side is what the tracing layer exported. The profiler's side is CUPTI's, of a
range around the same call, just inside the span's marks. With two streams, two songs are generated at the same time,
each in a thread with its own stream. The engine replays steps as CUDA graphs; with `--plain` it launches kernel by
kernel.

A span is stream time, so it is compared with the *stream interval*: from when the stream reached the opening of the
range to when it reached the closing, each time as an event recorded there would (`gpu_timeline.RangeIntervals` has the
definition). The time between a mark and the range is part of the difference. *Work* is the time from the first to the
last piece of GPU work that was launched inside the range, whatever stream it ran on and whether it was launched alone
or in a replayed graph. *Idle* is what the stream interval has beyond that, as a share of the span: at the beginning and
the end the GPU ran nothing of the call, as a rule because it waited for the host.

Ends with 1 when a span is further from its stream interval than 2 % and 50 us, or no span could be compared.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import threading
from collections import defaultdict
from contextlib import ExitStack
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
from acestep_otel.patches import engine
from acestep_otel.patches.patcher import Patcher
from acestep_otel.recording.call import Call, StageDefinition
from acestep_otel.recording.request_tracer import RequestTracer
from acestep_otel.recording.trace_tree import Stage, current_recording
from acestep_otel.settings import Settings
from benchmarks.arguments import whole_number
from benchmarks.environment import add_model_options, environment, write_result
from benchmarks.gpu_timeline import RangeIntervals, device_intervals, load_events
from benchmarks.workload import prepare

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


class RangedTracer(RequestTracer):
    """A tracer with a profiler range around each call, inside the span's marks."""

    _numbers = itertools.count()

    def stage(self, definition: StageDefinition, call: Call) -> Any:
        """Run a call as a stage, in a range that the stage's number names."""
        return super().stage(definition, _RangedCall(call.wrapped, call.instance, call.args, call.kwargs))

    def _begin(self, *arguments: Any) -> Any:
        stage = super()._begin(*arguments)
        if isinstance(stage, Stage):
            stage.attributes[NUMBER] = next(self._numbers)
        return stage


class _RangedCall(Call):
    def run(self) -> Any:
        """Make the call in the range of the stage that is open."""
        recording = current_recording()
        if recording is None or NUMBER not in recording.innermost.attributes:
            return super().run()
        with record_function(f"{RANGE}{recording.innermost.attributes[NUMBER]}"):
            return super().run()


def rows_of(spans: list[ReadableSpan], ranges: dict[str, RangeIntervals]) -> list[dict[str, Any]]:
    """One row per kind of span: how far its spans are from the profiler's intervals of their ranges."""
    pairs: dict[str, list[tuple[float, RangeIntervals]]] = defaultdict(list)
    for span in spans:
        intervals = ranges.get(str((span.attributes or {}).get(NUMBER)))
        if intervals is not None and span.name in COMPARED:
            pairs[span.name].append((((span.end_time or 0) - (span.start_time or 0)) / 1e9, intervals))
    return [compared(name, pairs[name]) for name in COMPARED if name in pairs]


def compared(name: str, pairs: list[tuple[float, RangeIntervals]]) -> dict[str, Any]:
    """A row from pairs of a span's seconds and the profiler's intervals; differences are from the stream interval."""
    differences = [seconds - intervals.stream_seconds for seconds, intervals in pairs]
    allowed = [max(ALLOWED_SHARE * intervals.stream_seconds, ALLOWED_SECONDS) for _, intervals in pairs]
    span_seconds = sum(seconds for seconds, _ in pairs)
    stream_seconds = sum(intervals.stream_seconds for _, intervals in pairs)
    return {
        "span": name,
        "count": len(pairs),
        "span_seconds": span_seconds,
        "profiler_stream_seconds": stream_seconds,
        "profiler_work_seconds": sum(intervals.work_seconds for _, intervals in pairs),
        "span_to_stream_ratio": span_seconds / stream_seconds,
        "idle_share_of_span": sum(intervals.idle_seconds for _, intervals in pairs) / span_seconds,
        "median_difference_ms": statistics.median(differences) * 1e3,
        "largest_difference_ms": max(map(abs, differences)) * 1e3,
        "within_2_percent_or_50_us": sum(
            abs(difference) <= most for difference, most in zip(differences, allowed, strict=True)
        ),
    }


def require_agreement(rows: list[dict[str, Any]]) -> None:
    """Check the rows.

    Raises:
        SystemExit: with 1, if a span is beyond the tolerance or none was compared.
    """
    if not rows:
        raise SystemExit("no span has a range that launched work: nothing was compared")
    if beyond := [row["span"] for row in rows if row["within_2_percent_or_50_us"] < row["count"]]:
        raise SystemExit(f"further than 2 % and 50 us from the stream interval: {', '.join(beyond)}")


def make_songs(models: Any, song: Any, streams: int) -> None:
    """One song on the current stream, or several at the same time on separate streams."""
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
    """Run under both, print a row per kind of span, and exit with 1 if they disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument(
        "--streams", type=whole_number, default=1, help="songs generated at the same time, each on its own stream"
    )
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this comparison needs a CUDA device")

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = RangedTracer(provider.get_tracer("benchmark"), NoOpMeter("benchmark"), Settings(), run_id="benchmark")
    models, song = prepare(options)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # As many songs before the measured ones as there are shapes to compile and graphs to record.
        for _ in range(2):
            make_songs(models, song, options.streams)
        patcher = Patcher(tracer)
        patcher.apply(engine.PATCHES)
        stack.callback(patcher.remove)
        make_songs(models, song, options.streams)
        # Spans of a song that came back before the device was done follow later.
        tracer.finish(_PATIENCE_SECONDS)
        exporter.clear()
        with profile(
            activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA],
            experimental_config=_ExperimentalConfig(profile_all_threads=True),
        ) as profiler:
            # The first ranges of a profiler's session include its set-up, between a span's mark and its range.
            make_songs(models, song, options.streams)
            tracer.finish(_PATIENCE_SECONDS)
            exporter.clear()
            make_songs(models, song, options.streams)
        tracer.finish(_PATIENCE_SECONDS)
        profiler.export_chrome_trace(str(folder / "trace.json"))
        ranges = device_intervals(load_events(folder / "trace.json"), RANGE)

    rows = rows_of(list(exporter.get_finished_spans()), ranges)
    titles = ("count", "span s", "stream s", "work s", "ratio", "idle", "median diff ms", "max diff ms", "2 % or 50 us")
    print(f"{'span':20}" + "".join(f"{title:>15}" for title in titles))
    for row in rows:
        figures = (
            row["count"],
            f"{row['span_seconds']:.4f}",
            f"{row['profiler_stream_seconds']:.4f}",
            f"{row['profiler_work_seconds']:.4f}",
            f"{row['span_to_stream_ratio']:.4f}",
            f"{row['idle_share_of_span']:.2%}",
            f"{row['median_difference_ms']:.3f}",
            f"{row['largest_difference_ms']:.3f}",
            f"{row['within_2_percent_or_50_us']} of {row['count']}",
        )
        print(f"{row['span']:20}" + "".join(f"{figure:>15}" for figure in figures))
    write_result(options.output, {"environment": environment(), "rows": rows})
    require_agreement(rows)


if __name__ == "__main__":
    main()
