"""Does tracing make the host wait for the GPU? Counts the waits of a song without tracing, and at each detail level.

python -m benchmarks.synchronisations --device cuda --weights synthetic --thinking --duration 30
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any, Final

import torch
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from torch.profiler import ProfilerActivity, profile

from acestep.inference import generate_music
from acestep_otel.instrumentor import AceStepInstrumentor
from benchmarks.environment import add_model_options, environment, write_result
from benchmarks.gpu_timeline import SYNCHRONISATIONS, load_events, synchronisations
from benchmarks.workload import prepare

DETAILS: Final = ("not instrumented", "sampled out", "stage", "step", "token")


def counted(models: Any, song: Any, detail: str) -> dict[str, int]:
    """Waits during one song."""
    provider = TracerProvider(sampler=ALWAYS_OFF if detail == "sampled out" else ALWAYS_ON)
    provider.add_span_processor(BatchSpanProcessor(InMemorySpanExporter()))
    instrumentor = AceStepInstrumentor()
    if detail != "not instrumented":
        instrumentor.instrument(tracer_provider=provider, detail={"sampled out": "step"}.get(detail, detail))
    try:
        generate_music(models, song)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            generate_music(models, song)
    finally:
        if detail != "not instrumented":
            instrumentor.uninstrument()
        provider.shutdown()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        return synchronisations(load_events(trace))


def main() -> None:
    """Count, print a row per detail level, and exit with 1 if tracing added a wait."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device to wait for")
    models, song = prepare(options)
    generate_music(models, song)
    rows = {detail: counted(models, song, detail) for detail in DETAILS}
    print(f"{'detail':18}" + "".join(f"{name:>24}" for name in SYNCHRONISATIONS))
    for detail, waits in rows.items():
        print(f"{detail:18}" + "".join(f"{waits[name]:>24}" for name in SYNCHRONISATIONS))
    write_result(options.output, {"environment": environment(), "rows": rows})
    plain = rows["not instrumented"]
    if added := [detail for detail, waits in rows.items() if any(waits[name] > plain[name] for name in waits)]:
        raise SystemExit(f"tracing added waits at: {', '.join(added)}")


if __name__ == "__main__":
    main()
