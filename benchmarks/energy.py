"""Energy of songs by the layer, against the power that ``nvidia-smi`` reports, integrated over the same times.

    python -m benchmarks.energy --weights synthetic --thinking --duration 240 --songs 10

Two independent ways: the layer reads the driver's energy counter, ``nvidia-smi`` the power sensor. The power is
averaged by the driver over up to a second, so it agrees over a whole song and not at its ends. Songs follow one another
after a pause in which the card's idle power is measured.
"""

from __future__ import annotations

import argparse
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import mean, stdev

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from acestep.inference import generate_music
from acestep_otel import semconv
from acestep_otel.instrumentor import AceStepInstrumentor
from acestep_otel.recording import warmup
from acestep_otel.recording.gpu_metrics import uuid_of
from benchmarks.arguments import whole_number
from benchmarks.environment import add_model_options, environment, write_result
from benchmarks.workload import prepare

IDLE_SECONDS = 5.0
QUERY = "--query-gpu=power.draw.instant"
AVERAGED = "--query-gpu=power.draw"


@dataclass(frozen=True)
class Power:
    """Watts at one time: Unix nanoseconds at which the line arrived."""

    time_ns: int
    watts: float


@dataclass(frozen=True)
class Song:
    """One song: joules by the layer and by the integral of the power, and its seconds."""

    seconds: float
    joules: float
    integrated: float
    per_minute: float | None

    @property
    def ratio(self) -> float:
        """Layer over integral."""
        return self.joules / self.integrated


def integral(samples: Sequence[Power], start_ns: int, end_ns: int) -> float:
    """Joules between two times: trapezoids between samples, the ends cut to the times."""
    joules = 0.0
    for left, right in pairwise(samples):
        begin, end = max(left.time_ns, start_ns), min(right.time_ns, end_ns)
        if end > begin:
            joules += (left.watts + right.watts) / 2 * (end - begin) / 1e9
    return joules


@contextmanager
def sampled_power(uuid: str, milliseconds: int) -> Iterator[list[Power]]:
    """Power by ``nvidia-smi`` while the block runs.

    Raises:
        SystemExit: it does not run here, or reports no power.
    """
    samples: list[Power] = []
    arguments = [f"--id={uuid}", "--format=csv,noheader,nounits"]
    instant = subprocess.run(["nvidia-smi", QUERY, *arguments], capture_output=True, text=True, check=False).stdout
    query = QUERY if instant.strip().replace(".", "", 1).isdigit() else AVERAGED
    command = ["nvidia-smi", query, *arguments, f"--loop-ms={milliseconds}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                try:
                    samples.append(Power(time.time_ns(), float(line)))
                except ValueError:
                    continue

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            yield samples
        finally:
            process.terminate()
            reader.join(timeout=5)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--songs", type=whole_number, default=10, help="measured songs")
    parser.add_argument("--period", type=whole_number, default=20, help="milliseconds between two powers")
    options = parser.parse_args()
    if options.device.type != "cuda":
        raise SystemExit("error: there is no NVIDIA GPU: energy is read from its driver")
    models, song = prepare(options)
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = AceStepInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    try:
        with warmup():
            generate_music(models, song)
        with sampled_power(uuid_of(options.device), options.period) as samples:
            begun = time.time_ns()
            time.sleep(IDLE_SECONDS)
            idle = integral(samples, begun, time.time_ns()) / IDLE_SECONDS
            exporter.clear()
            for _ in range(options.songs):
                generate_music(models, song)
                instrumentor.flush()
            time.sleep(1.5)
        roots = [span for span in exporter.get_finished_spans() if span.name == semconv.GENERATE_MUSIC]
    finally:
        instrumentor.uninstrument()
    songs = []
    for root in roots:
        attributes = dict(root.attributes or {})
        if semconv.ENERGY not in attributes:
            raise SystemExit("error: the song is too short for the counter's resolution, or the card keeps no counter")
        start_ns, end_ns = root.start_time or 0, root.end_time or 0
        per_minute = attributes.get(semconv.ENERGY_PER_MINUTE)
        songs.append(
            Song(
                seconds=(end_ns - start_ns) / 1e9,
                joules=float(str(attributes[semconv.ENERGY])),
                integrated=integral(samples, start_ns, end_ns),
                per_minute=None if per_minute is None else float(str(per_minute)),
            )
        )
    resolution = float(str((roots[0].attributes or {})[semconv.ENERGY_RESOLUTION]))
    report(songs, idle, resolution, len(samples))
    write_result(
        options.output,
        {
            "environment": environment(),
            "idle_watts": idle,
            "resolution": resolution,
            "songs": [{**asdict(each), "ratio": each.ratio} for each in songs],
        },
    )


def report(songs: Sequence[Song], idle: float, resolution: float, samples: int) -> None:
    """Print the table."""
    print(f"{'song':>5}{'seconds':>10}{'layer (J)':>12}{'nvidia-smi (J)':>16}{'ratio':>8}{'Wh/min':>9}")
    for number, song in enumerate(songs, start=1):
        per_minute = "-" if song.per_minute is None else f"{song.per_minute:.4f}"
        print(
            f"{number:>5}{song.seconds:>10.3f}{song.joules:>12.1f}{song.integrated:>16.1f}{song.ratio:>8.3f}"
            f"{per_minute:>9}"
        )
    joules = [song.joules for song in songs]
    spread = stdev(joules) if len(joules) > 1 else 0.0
    print(
        f"layer: {mean(joules):.1f} J on average, standard deviation {spread:.1f} J "
        f"({100 * spread / mean(joules):.2f} %)"
    )
    print(f"ratio: {mean(song.ratio for song in songs):.4f} on average; idle {idle:.0f} W; {samples} samples of power")
    print(f"resolution of the counter with its readings: {1e3 * resolution:.0f} ms")


if __name__ == "__main__":
    main()
