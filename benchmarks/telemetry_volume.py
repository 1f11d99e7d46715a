"""How much telemetry does a song send? Spans and bytes of a trace, series and bytes of the metrics, by detail level.

    python -m benchmarks.telemetry_volume --thinking --duration 240     # from the root of the repository

Sizes are those of uncompressed OTLP. They depend on what is done (steps, tiles, tokens), not on the size of the models,
so the tiny models give the same figures.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Histogram, InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from acestep.checkpoints import Models
from acestep.inference import generate_music
from acestep.types import GenerationRequest
from acestep_otel.instrumentor import AceStepInstrumentor
from acestep_otel.settings import Detail
from benchmarks.environment import add_model_options, environment, write_result
from benchmarks.workload import prepare

LEVELS: Final = (Detail.STAGE, Detail.STEP, Detail.TOKEN)


def measure(models: Models, song: GenerationRequest, detail: Detail) -> dict[str, Any]:
    """Generate a song at a detail level, and measure what it emitted."""
    spans = InMemorySpanExporter()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    reader = InMemoryMetricReader()
    meters = MeterProvider(metric_readers=[reader])
    instrumentor = AceStepInstrumentor()
    instrumentor.instrument(tracer_provider=tracers, meter_provider=meters, detail=detail)
    try:
        with TemporaryDirectory() as folder:
            generate_music(models, song, save_dir=Path(folder))
    finally:
        instrumentor.uninstrument()
    metrics = reader.get_metrics_data()
    assert metrics is not None
    finished = spans.get_finished_spans()
    return {
        "detail": detail.name.lower(),
        "spans": len(finished),
        "trace_bytes": len(encode_spans(finished).SerializeToString()),
        "series": sum(
            len(point.bucket_counts) + 2 if isinstance(metric.data, Histogram) else 1
            for resource in metrics.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
        ),
        "metric_bytes": len(encode_metrics(metrics).SerializeToString()),
    }


def main() -> None:
    """Print the table, and write it to the file of the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_options(parser)
    options = parser.parse_args()
    models, song = prepare(options)
    rows = [measure(models, song, detail) for detail in LEVELS]
    print("detail   spans   trace bytes   series   metric bytes")
    for row in rows:
        print(
            f"{row['detail']:<8} {row['spans']:>5}   {row['trace_bytes']:>11}   {row['series']:>6}   "
            f"{row['metric_bytes']:>12}"
        )
    write_result(options.output, {"environment": environment(), "results": rows})


if __name__ == "__main__":
    main()
