"""Stalls and a hang, provoked, and what the layer reports of them.

    python -m benchmarks.stalls                                                       # tiny models, CPU
    python -m benchmarks.stalls --device cuda --weights synthetic --songs 20 --minutes 8

Four cases in one process, all of them unless ``--case`` names one. Every stall is printed with its ratio to the running
median, its cause and its evidence, beside the wall time of the song and that of a normal one:

* ``normal``: nothing is provoked. Every stall is a false alarm.
* ``full-card`` (CUDA): when the decode has been planned, other memory of the process fills the card, as that of another
  request would. ``fragmented``: it was released again, and the allocator keeps it in blocks of 20 MiB. ``leaves 1.1``:
  it stays, and leaves 1.1 times what the decode of a normal song takes. Filling is not part of the wall time. A normal
  song follows each of them: the allocator's cache is empty, so that it may wait for memory from the driver (``driver``:
  allocations that the driver served).
* ``offload`` (not on the CPU): models are in host memory while they are not used. The engine moves them before and
  after the steps and tiles, so the moves are spans of their own (``moved s``) and no stalls. ``in a tile``: the other
  models are moved to the device and back while a tile decodes, as code does that loads a model when it is first called.
* ``hang``: a tile does not end. The snapshot has to arrive while it hangs.

``slowest`` is the check from outside: the longest step or tile over the median of the normal case, computed here from
the spans. The layer reports a stall from a ratio of 5 and 0.1 s beyond the median on. The result is written after each
case.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, Final

import torch
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from acestep.checkpoints import Models
from acestep.errors import AceStepError
from acestep.inference import generate_music
from acestep.renderer.decoder import VaeDecoder
from acestep.renderer.renderer import Renderer
from acestep.renderer.vae import SongTile
from acestep.types import GenerationRequest, Placement
from acestep_otel import semconv
from acestep_otel.instrumentor import AceStepInstrumentor
from acestep_otel.recording import warmup
from acestep_otel.recording.stalls import STALL_FACTOR
from acestep_otel.settings import DEADLINE_VARIABLE
from benchmarks.arguments import minutes, whole_number
from benchmarks.environment import add_model_options, environment, write_result
from benchmarks.memory_pressure import filled, fragmented, on_planned
from benchmarks.workload import prepare

NORMAL: Final = "normal"
CASES: Final = (NORMAL, "full-card", "offload", "hang")
LEAVES: Final = (2.0, 1.2, 1.1, 1.05, 1.0, 0.7, 0.3, 0.1, 0.02)
"""What other memory leaves, as a multiple of what the decode of a normal song takes."""
COMPARED_FROM: Final = 6
"""Steps and tiles before the first song that counts: the layer compares with a median of five or more."""
MOST_WARM_UPS: Final = 12
SHOWN_FRAMES: Final = 6
"""Innermost frames of a snapshot's stack that are printed; the result has all of them."""
FETCHED: Final = ("transformer", "text_encoder", "condition_encoder")
FETCHES: Final = 3
"""Times that these models are fetched in one tile, so that it takes 0.1 s also where that is fast."""
HANG_LIMIT: Final = 30.0
"""Seconds beyond the deadline after which a tile hangs no longer, with or without a snapshot."""


@dataclass(frozen=True)
class ReportedStall:
    """An event ``acestep.stall`` and the span that has it."""

    span: str
    number: int
    seconds: float
    ratio: float
    usual: float
    cause: str
    evidence: str


@dataclass(frozen=True)
class Song:
    """What the layer and the allocator report of one song.

    Attributes:
        seconds: wall time.
        steps: seconds of each diffusion step.
        tiles: seconds of each tile, by frame.
        stalls: in the order of the spans.
        decode: attributes of the decode: tile length, attempts, where.
        moved: seconds in which models moved between host and device.
        retries: that the allocator counted meanwhile; zero off CUDA.
        out_of_memory: allocations that failed, likewise.
        driver_allocations: that the driver served, likewise.
    """

    seconds: float
    steps: tuple[float, ...]
    tiles: tuple[float, ...]
    stalls: tuple[ReportedStall, ...]
    decode: dict[str, Any]
    moved: float
    retries: int
    out_of_memory: int
    driver_allocations: int


class Layer:
    """The layer with providers of its own, and the spans and metrics that arrive there.

    Args:
        deadline: seconds after which a request is reported; 0 for never.
    """

    def __init__(self, deadline: float = 0.0) -> None:
        self.exporter = InMemorySpanExporter()
        self._deadline = deadline
        self._metrics = InMemoryMetricReader()
        self._instrumentor = AceStepInstrumentor()

    @contextmanager
    def watching(self) -> Iterator[Layer]:
        """The layer switched on."""
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        before = os.environ.get(DEADLINE_VARIABLE)
        os.environ[DEADLINE_VARIABLE] = f"{self._deadline:g}"
        try:
            self._instrumentor.instrument(tracer_provider=provider, meter_provider=MeterProvider([self._metrics]))
            yield self
        finally:
            self._instrumentor.uninstrument()
            os.environ.pop(DEADLINE_VARIABLE)
            if before is not None:
                os.environ[DEADLINE_VARIABLE] = before

    def warm_up(self, models: Models, request: GenerationRequest) -> None:
        """Songs that fill caches, and give every later step and tile a median."""
        tiles = 0
        with warmup():
            for _ in range(MOST_WARM_UPS):
                tiles += len(self.generate(models, request).tiles)
                if tiles >= COMPARED_FROM:
                    break

    def generate(self, models: Models, request: GenerationRequest) -> Song:
        """One song."""
        self.exporter.clear()
        before = allocator(models.device)
        start = time.perf_counter()
        generate_music(models, request)
        seconds = time.perf_counter() - start
        self._instrumentor.flush(10)
        after = allocator(models.device)
        spans = self.exporter.get_finished_spans()
        decode = next(span for span in spans if span.name == semconv.VAE_DECODE)
        shown = (semconv.VAE_TILE_LENGTH, semconv.VAE_TILES, semconv.VAE_ATTEMPTS, semconv.VAE_RUNG)
        return Song(
            seconds=seconds,
            steps=tuple(duration(span) for span in spans if span.name == semconv.DIT_STEP),
            tiles=tuple(
                duration(span) / float(str(attributes(span)[semconv.VAE_TILE_FRAMES]))
                for span in spans
                if span.name == semconv.VAE_TILE and span.status.is_ok
            ),
            stalls=tuple(stalls_of(spans)),
            decode={str(name).removeprefix("acestep.vae."): attributes(decode).get(name) for name in shown},
            moved=sum(duration(span) for span in spans if span.name == semconv.OFFLOAD_MOVE),
            retries=after[0] - before[0],
            out_of_memory=after[1] - before[1],
            driver_allocations=after[2] - before[2],
        )

    def counted(self) -> int:
        """Stalls by the metric; those of warm-ups are not in it."""
        data = self._metrics.get_metrics_data()
        if data is None:
            return 0
        return sum(
            int(point.value)  # type: ignore[union-attr, misc]
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == semconv.STALLS.name
            for point in metric.data.data_points
        )


def attributes(span: ReadableSpan) -> dict[str, Any]:
    """Attributes of a span."""
    return dict(span.attributes or {})


def duration(span: ReadableSpan) -> float:
    """Seconds of a span."""
    return ((span.end_time or 0) - (span.start_time or 0)) / 1e9


def stalls_of(spans: Sequence[ReadableSpan]) -> Iterator[ReportedStall]:
    """The stalls that spans report."""
    for span in spans:
        for event in span.events:
            if event.name == semconv.STALL_EVENT:
                known, own = dict(event.attributes or {}), attributes(span)
                yield ReportedStall(
                    span=semconv.stage_of(span.name),
                    number=int(own.get(semconv.DIT_STEP_INDEX, own.get(semconv.VAE_TILE_INDEX, 0))),
                    seconds=duration(span),
                    ratio=float(str(known[semconv.STALL_RATIO])),
                    usual=float(str(known[semconv.STALL_USUAL])),
                    cause=str(known[semconv.STALL_CAUSE]),
                    evidence=str(known[semconv.STALL_EVIDENCE]),
                )


def allocator(device: torch.device) -> tuple[int, int, int]:
    """Retries, failures and allocations from the driver since the process began, by the allocator; zeros off CUDA."""
    if device.type != "cuda":
        return 0, 0, 0
    counters = torch.cuda.memory_stats(device)
    return counters["num_alloc_retries"], counters["num_ooms"], counters["num_device_alloc"]


def decode_bytes(layer: Layer, models: Models, request: GenerationRequest) -> int:
    """Bytes that the decode of a normal song takes at its peak, beyond those in use when it begins."""
    begun: list[int] = []
    device = models.device
    with on_planned(models.renderer.decoder, lambda: begun.append(torch.cuda.memory_allocated(device))):
        layer.generate(models, request)
    # The layer resets the peak at the beginning of the decode.
    return torch.cuda.max_memory_allocated(device) - begun[-1]


# --- The cases ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Usual:
    """Medians of the normal case: wall time, a step, a frame of a tile."""

    seconds: float
    step: float
    frame: float

    @classmethod
    def of(cls, songs: Sequence[Song]) -> Usual:
        """The medians of songs."""
        return cls(
            median(song.seconds for song in songs),
            median(step for song in songs for step in song.steps),
            median(tile for song in songs for tile in song.tiles),
        )

    def slowest(self, song: Song) -> float:
        """The longest step or tile over its median."""
        return max([*(step / self.step for step in song.steps), *(tile / self.frame for tile in song.tiles)])


@dataclass(frozen=True)
class Row:
    """Songs of one case, or of one way to provoke it."""

    case: str
    songs: tuple[Song, ...]

    def result(self, usual: Usual) -> dict[str, Any]:
        """As JSON."""
        return {
            "case": self.case,
            "stalls": [asdict(stall) for song in self.songs for stall in song.stalls],
            "compared": sum(len(song.steps) + len(song.tiles) for song in self.songs),
            "wall_seconds": [song.seconds for song in self.songs],
            "normal_seconds": usual.seconds,
            "slowest_ratio": max(usual.slowest(song) for song in self.songs),
            "allocator_retries": sum(song.retries for song in self.songs),
            "out_of_memory": sum(song.out_of_memory for song in self.songs),
            "driver_allocations": sum(song.driver_allocations for song in self.songs),
            "moved_seconds": [song.moved for song in self.songs],
            "decode": [song.decode for song in self.songs],
        }


TITLE: Final = (
    f"{'case':14}{'songs':>6}{'stalls':>8}{'slowest':>9}{'retries':>9}{'OOM':>5}{'driver':>8}{'wall s':>9}"
    f"{'normal':>9}{'moved s':>9}  decode"
)


def show(row: Row, usual: Usual) -> None:
    """Print a row, and its stalls below it."""
    found, last = row.result(usual), row.songs[-1].decode
    decode = f"{last['tiles']} tiles of {last['tile_length']} frames, attempt {last['attempts']}, {last['rung']}"
    print(
        f"{row.case:14}{len(row.songs):>6}{len(found['stalls']):>8}{found['slowest_ratio']:>8.1f}x"
        f"{found['allocator_retries']:>9}{found['out_of_memory']:>5}{found['driver_allocations']:>8}"
        f"{median(found['wall_seconds']):>9.3f}{usual.seconds:>9.3f}{median(found['moved_seconds']):>9.3f}  {decode}",
        flush=True,
    )
    for stall in found["stalls"]:
        print(
            f"    {stall['span']} {stall['number']} took {stall['seconds']:.3f} s, {stall['ratio']:.1f} times the "
            f"usual {stall['usual']:.4f} s: {stall['cause']} ({stall['evidence']})"
        )
    if not found["stalls"] and found["slowest_ratio"] >= STALL_FACTOR:
        print("    no stall, because less than 0.1 s beyond the median")


def full_card(layer: Layer, models: Models, request: GenerationRequest, until: float) -> Iterator[Row]:
    """A song with a fragmented cache, and one for each amount of memory that is left, as long as there is time."""
    decoder = models.renderer.decoder
    needed = decode_bytes(layer, models, request)
    print(f"the decode of a normal song takes {needed / 2**30:.2f} GiB at its peak")
    ways = {
        "fragmented": fragmented(decoder),
        **{f"leaves {share:g}": filled(decoder, int(share * needed)) for share in LEAVES},
    }
    for name, way in ways.items():
        if time.monotonic() > until:
            print(f"{name}: left out, there is no time")
            continue
        try:
            with way as spent:
                song = layer.generate(models, request)
        except (AceStepError, RuntimeError) as error:
            print(f"{name}: no song, {type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        yield Row(name, (replace(song, seconds=song.seconds - sum(spent)),))
        # Also keeps the running medians those of normal songs.
        yield Row("  afterwards", (layer.generate(models, request),))


@contextmanager
def inside_tiles(action: Callable[[], None]) -> Iterator[None]:
    """Call something inside of every tile, before it is decoded; the layer has to be switched on in the block."""
    decode_tile = VaeDecoder.decode_tile

    def with_action(self: VaeDecoder, latents: torch.Tensor, *, tile: SongTile, vae: Any) -> torch.Tensor:
        action()
        return decode_tile(self, latents, tile=tile, vae=vae)

    VaeDecoder.decode_tile = with_action  # type: ignore[method-assign]
    try:
        yield
    finally:
        VaeDecoder.decode_tile = decode_tile  # type: ignore[method-assign]


def offload(models: Models, options: argparse.Namespace, request: GenerationRequest) -> Iterator[Row | int]:
    """Songs of models that are on the host between uses, compared by the layer with those of ``models``.

    Yields:
        Rows, and last the number of stalls by the metric.
    """
    layer, fetched = Layer(), list[Renderer]()

    def fetch() -> None:
        # Once, in the first tile after it was asked for.
        for renderer in fetched[:1]:
            fetched.clear()
            others = {name: getattr(renderer.models, name) for name in FETCHED}
            for _ in range(FETCHES):
                with renderer.offloader.on_device(**others):
                    pass

    with inside_tiles(fetch), layer.watching():
        layer.warm_up(models, request)
        offloaded, _ = prepare(options, Placement(offload_to_cpu=True, offload_dit_to_cpu=True))
        yield Row("offload, first", (layer.generate(offloaded, request),))
        yield Row("offload", tuple(layer.generate(offloaded, request) for _ in range(options.songs)))
        fetched.append(offloaded.renderer)
        yield Row("  in a tile", (layer.generate(offloaded, request),))
        yield layer.counted()


def hang(models: Models, request: GenerationRequest, deadline: float) -> dict[str, Any]:
    """A song whose first tile does not end before the snapshot has arrived."""
    layer = Layer(deadline)
    hangs, arrived = [False], list[float]()

    def sleep() -> None:
        begun = time.monotonic()
        while hangs[0] and not arrived and time.monotonic() < begun + deadline + HANG_LIMIT:
            time.sleep(0.05)
            if any(span.name == semconv.REQUEST_HANG for span in layer.exporter.get_finished_spans()):
                arrived.append(time.monotonic() - begun)

    log = logging.getLogger("acestep_otel")
    level = log.level
    # The same snapshot goes to the log, and is printed here.
    log.setLevel(logging.ERROR)
    try:
        with inside_tiles(sleep), layer.watching():
            layer.warm_up(models, request)
            hangs[0] = True
            song = layer.generate(models, request)
            snapshots = [span for span in layer.exporter.get_finished_spans() if span.name == semconv.REQUEST_HANG]
    finally:
        log.setLevel(level)
    return {
        "case": "hang",
        "deadline_seconds": deadline,
        "wall_seconds": [song.seconds],
        "arrived_while_it_hung": bool(arrived),
        "snapshots": [
            {name: value for name, value in attributes(span).items() if name in SNAPSHOT} for span in snapshots
        ],
        "stalls": [asdict(stall) for stall in song.stalls],
    }


SNAPSHOT: Final = (
    semconv.HANG_STAGE,
    semconv.HANG_SECONDS,
    semconv.HANG_STAGE_SECONDS,
    semconv.HANG_FINISHED,
    semconv.HANG_DEVICE_BUSY,
    semconv.HANG_STACK,
    semconv.VAE_TILE_INDEX,
)


def show_hang(found: dict[str, Any]) -> None:
    """Print what arrived while the song hung."""
    when = "while it hung" if found["arrived_while_it_hung"] else "never while it hung"
    count = len(found["snapshots"])
    print(f"hang: deadline {found['deadline_seconds']:.1f} s, {count} snapshots, the first arrived {when}")
    for snapshot in found["snapshots"][:1]:
        print(
            f"    after {snapshot[semconv.HANG_SECONDS]:.2f} s in {snapshot[semconv.HANG_STAGE]} "
            f"{snapshot.get(semconv.VAE_TILE_INDEX, '')}; device busy: {snapshot.get(semconv.HANG_DEVICE_BUSY)}"
        )
        print("\n".join(f"    {line}" for line in snapshot[semconv.HANG_STACK].splitlines()[-SHOWN_FRAMES:]))
    for stall in found["stalls"]:
        print(
            f"    {stall['span']} {stall['number']} took {stall['seconds']:.3f} s, {stall['ratio']:.1f} times the "
            f"usual: {stall['cause']} ({stall['evidence']})"
        )


def main() -> None:
    """Run the cases, print a row each, and write the result after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--case", choices=CASES, action="append", help="may be repeated; default: all; normal is run")
    parser.add_argument("--songs", type=whole_number, default=10, help="of the normal case and of the offloaded one")
    parser.add_argument("--minutes", type=minutes, default=math.inf, help="after these no further part begins")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    chosen = options.case or CASES
    models, request = prepare(options)
    result: dict[str, Any] = {"cases": [], "skipped": [], "events": 0, "counted_by_the_metric": 0}

    def keep(found: dict[str, Any]) -> None:
        result["cases"].append(found)
        write_result(options.output, {"environment": environment(), **result})

    def begins(case: str) -> bool:
        if case == "full-card" and options.device.type != "cuda":
            why = f"{options.device} has no caching allocator that retries"
        elif case == "offload" and options.device.type == "cpu":
            why = "models that run on the CPU are not offloaded"
        elif time.monotonic() > until:
            why = "there is no time"
        else:
            return case in chosen
        if case in chosen:
            print(f"{case}: skipped, {why}")
            result["skipped"].append({"case": case, "reason": why})
        return False

    def run(rows: Iterable[Row]) -> None:
        for row in rows:
            show(row, usual)
            result["events"] += sum(len(song.stalls) for song in row.songs)
            keep(row.result(usual))

    with Layer().watching() as layer:
        layer.warm_up(models, request)
        normal = Row(NORMAL, tuple(layer.generate(models, request) for _ in range(options.songs)))
        usual = Usual.of(normal.songs)
        print(TITLE)
        run([normal])
        if begins("full-card"):
            run(full_card(layer, models, request, until))
        result["counted_by_the_metric"] += layer.counted()
    if begins("hang"):
        hung = hang(models, request, deadline=max(1.0, 4 * usual.seconds))
        show_hang(hung)
        keep({**hung, "normal_seconds": usual.seconds})
    if begins("offload"):
        for found in offload(models, options, request):
            if isinstance(found, Row):
                run([found])
            else:
                result["counted_by_the_metric"] += found
    counted = result["counted_by_the_metric"]
    print(f"{result['events']} events in the rows; {counted} stalls by the metric {semconv.STALLS.name}")
    write_result(options.output, {"environment": environment(), **result})


if __name__ == "__main__":
    main()
