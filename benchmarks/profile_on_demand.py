"""What does a request that is profiled on demand cost the others of a running service?

    python -m benchmarks.profile_on_demand --device cpu --seconds 20 --periods 2                       # tiny models
    python -m benchmarks.profile_on_demand --device cuda --weights synthetic --seconds 30 --periods 4

``examples/serving`` runs under a closed loop: each client requests the same song, follows it to its end and repeats.
Periods take turns: in both kinds one more request is made every few seconds, in every second period with the header
``X-Profile``. The service profiles one request a minute at most and serves the rest as usual; those are ``refused``.

One worker makes one song at a time, so the others wait in the queue behind a profiled song, which takes longer. Two
figures are therefore kept apart, both by the service's own spans: ``processing``, from the start of a song to its end
(``generate_music``), and ``wait``, its time in the queue (``acestep.queue.wait``). ``client`` is what the clients see:
both, and the HTTP interface. ``beside a profile`` are the songs of the others that were made while a profile was
recorded, written to disk or checked. The periods before and after the first profile are separate rows, because CUDA's
profiling interface stays loaded once it was used; set ``TEARDOWN_CUPTI=1`` to measure the service that unloads it.

A client finds its profile by the trace id that it sent: the file is named after it, and the root span has its location.
The program takes two times ``--seconds`` for each of ``--periods``, and half a minute for the start; no pair of periods
begins after ``--minutes``. The result is written after each pair.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import re
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from acestep_otel import semconv
from acestep_otel.settings import PROFILE_FOLDER_VARIABLE, PROFILE_TOKEN_VARIABLE
from benchmarks.arguments import available_device, minutes, output_file, whole_number
from benchmarks.environment import environment, write_result
from benchmarks.service import running_service
from benchmarks.trace_store import StoredSpan, TraceStore, trace_store
from examples.serving.load import Report, quantile, request_song, run_load

WARM_UP_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.5
"""Between two looks at the service's metrics, in both kinds of period."""
SETTLE_SECONDS: Final = 90.0
"""Most seconds after a period until every profile is written and every span has arrived."""
OUTCOMES: Final = re.compile(r'^acestep_profiles_total\{.*?acestep_outcome="([^"]*)".*?\} (\S+)', re.MULTILINE)
EXPECTED: Final = ("stored", "refused")
"""Outcomes of profiles where nothing is wrong."""


@dataclass(frozen=True)
class Served:
    """One finished song, by its spans; times are Unix seconds.

    Attributes:
        trace_id: that the client sent.
        began: when a worker began.
        processing: seconds of ``generate_music``.
        wait: seconds in the queue.
        profile: location of its profile by the root span; ``None`` for most.
    """

    trace_id: str
    began: float
    processing: float
    wait: float
    profile: str | None

    @property
    def ended(self) -> float:
        """When it was finished."""
        return self.began + self.processing


@dataclass
class Period:
    """One period of the load.

    Attributes:
        number: from 1.
        profiles: whether the request that is made every few seconds had the header.
        others: songs of the clients, which never have it.
        asked: songs that were requested every few seconds.
        latencies: seconds from the request of a client to its finished song.
        ended: songs of both by the state that they ended in.
        busy: when a profile was recorded, written or checked, in Unix seconds.
    """

    number: int
    profiles: bool
    others: list[Served] = field(default_factory=list)
    asked: list[Served] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    ended: Counter[str] = field(default_factory=Counter)
    busy: list[tuple[float, float]] = field(default_factory=list)

    @property
    def beside(self) -> list[Served]:
        """Songs of the others that were made while a profile was at work."""
        return [
            song for song in self.others if any(song.began < end and song.ended > start for start, end in self.busy)
        ]


@dataclass
class Outcomes:
    """Profiles by outcome as the service counts them, and when each count was seen to have grown."""

    counts: dict[str, int] = field(default_factory=dict)
    finished: list[float] = field(default_factory=list)

    def note(self, page: str) -> None:
        """Read the service's metrics."""
        for outcome, count in OUTCOMES.findall(page):
            more = int(float(count)) - self.counts.get(outcome, 0)
            self.counts[outcome] = int(float(count))
            if outcome != "refused":
                self.finished += [time.time()] * more


def served(trace_id: str, spans: Sequence[StoredSpan]) -> Served | None:
    """A song by the spans of its trace; ``None`` as long as one of them is missing."""
    by_name = {span.name: span for span in spans}
    song, queue = by_name.get(semconv.GENERATE_MUSIC), by_name.get(semconv.QUEUE_WAIT)
    if song is None or queue is None:
        return None
    return Served(
        trace_id=trace_id,
        began=song.start_ns / 1e9,
        processing=(song.end_ns - song.start_ns) / 1e9,
        wait=(queue.end_ns - queue.start_ns) / 1e9,
        profile=song.attributes.get(semconv.PROFILE_FILE),
    )


class Measurement:
    """Periods of load on one service.

    Args:
        url: of the service.
        store: where its spans arrive.
        token: secret of the header.
        options: of the command line.
    """

    def __init__(self, url: str, store: TraceStore, token: str, options: argparse.Namespace) -> None:
        self._url = url
        self._store = store
        self._headers = {"X-Profile": token}
        self._options = options
        self._song = {"duration": options.duration, "inference_steps": 8, "seed": 1}
        self._recorded = 0
        self.outcomes = Outcomes()

    async def warm_up(self) -> None:
        """Songs that do not count."""
        await run_load(self._url, clients=self._options.clients, seconds=WARM_UP_SECONDS, song=self._song)

    async def period(self, number: int, *, profiles: bool) -> Period:
        """The load for some seconds, and then until everything of it has arrived."""
        asked = Report()
        seconds, clients = self._options.seconds, self._options.clients
        watching = asyncio.ensure_future(self._watch())
        try:
            load = run_load(self._url, clients=clients, seconds=seconds, seed=number, song=self._song)
            asking = self._ask(asked, time.monotonic() + seconds, self._headers if profiles else {})
            others, _ = await asyncio.gather(load, asking)
            await self._settle(others, asked)
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
        period = Period(
            number, profiles, self._songs(others), self._songs(asked), others.latencies, others.ended + asked.ended
        )
        recorded = [song for song in period.asked if song.profile is not None]
        ends = self.outcomes.finished[-len(recorded) :] if recorded else []
        period.busy = [(song.began, end) for song, end in zip(recorded, ends, strict=False)]
        return period

    async def _ask(self, report: Report, deadline: float, headers: Mapping[str, str]) -> None:
        """Request a song every few seconds."""
        async with httpx.AsyncClient(base_url=self._url, timeout=httpx.Timeout(30, read=None)) as http:
            while (start := time.monotonic()) < deadline:
                await request_song(http, report, self._song, headers)
                await asyncio.sleep(max(0.0, start + self._options.every - time.monotonic()))

    async def _watch(self) -> None:
        """Read the service's metrics again and again."""
        async with httpx.AsyncClient(base_url=self._url, timeout=60) as http:
            while True:
                self.outcomes.note((await http.get("/metrics")).text)
                await asyncio.sleep(POLL_SECONDS)

    async def _settle(self, *reports: Report) -> None:
        """Wait until spans and profiles of all songs are complete."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            songs = [song for report in reports for song in self._songs(report)]
            finished = sum(report.ended["done"] for report in reports)
            recorded = sum(song.profile is not None for song in self._songs(reports[-1]))
            written = sum(self.outcomes.counts.get(name, 0) for name in self.outcomes.counts if name != "refused")
            if (len(songs) >= finished and written >= recorded + self._recorded) or time.monotonic() > deadline:
                break
            await asyncio.sleep(POLL_SECONDS)
        self._recorded += recorded
        if len(songs) < finished or written < self._recorded:
            print(
                f"{len(songs)} of {finished} songs have their spans after {SETTLE_SECONDS:g} s, or a profile is missing"
            )

    def _songs(self, report: Report) -> list[Served]:
        found = (served(trace_id, self._store.trace(trace_id)) for trace_id in report.traces)
        return [song for song in found if song is not None]


# --- Figures ------------------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> dict[str, float]:
    """The 50th and 99th percentile."""
    return {"p50": quantile(values, 0.5), "p99": quantile(values, 0.99)}


def figures(songs: Sequence[Served], latencies: Sequence[float] = ()) -> dict[str, Any]:
    """Percentiles of some songs."""
    found: dict[str, Any] = {
        "songs": len(songs),
        "processing_seconds": spread([song.processing for song in songs]),
        "wait_seconds": spread([song.wait for song in songs]),
    }
    return {**found, "client_seconds": spread(latencies)} if latencies else found


def rows_of(periods: Sequence[Period]) -> dict[str, dict[str, Any]]:
    """Songs of all periods by what was going on."""
    first = next((period.number for period in periods if period.busy), math.inf)
    groups = {
        "without, before": [period for period in periods if not period.profiles and period.number < first],
        "without, later": [period for period in periods if not period.profiles and period.number > first],
        "with": [period for period in periods if period.profiles],
    }
    rows = {
        name: figures(
            [song for period in group for song in period.others],
            [latency for period in group for latency in period.latencies],
        )
        for name, group in groups.items()
    }
    asked = [song for period in groups["with"] for song in period.asked]
    rows["  beside a profile"] = figures([song for period in periods for song in period.beside])
    rows["  otherwise"] = figures(
        [song for period in groups["with"] for song in period.others if song not in period.beside]
    )
    rows["profiled"] = figures([song for song in asked if song.profile is not None])
    rows["refused"] = figures([song for song in asked if song.profile is None])
    return {name: row for name, row in rows.items() if row["songs"]}


def profiles_of(periods: Sequence[Period], folder: Path) -> list[dict[str, Any]]:
    """Every profile: its size, and whether the root span and the client's trace id lead to it."""
    return [
        {
            **asdict(song),
            "bytes": Path(song.profile).stat().st_size if Path(song.profile).is_file() else 0,
            "linked": Path(song.profile) in {path.absolute() for path in folder.glob(f"{song.trace_id}.*")},
            "seconds_until_written": next(
                (end - song.ended for start, end in period.busy if start == song.began), None
            ),
        }
        for period in periods
        for song in period.asked
        if song.profile is not None
    ]


def show(rows: dict[str, dict[str, Any]]) -> None:
    """Print the table."""
    titles = (f"{name} {rank}" for name in ("processing", "wait", "client") for rank in ("p50", "p99"))
    print(f"{'seconds':20}{'songs':>7}" + "".join(f"{title:>16}" for title in titles))
    for name, row in rows.items():
        values = [
            row[figure][rank] if figure in row else None
            for figure in ("processing_seconds", "wait_seconds", "client_seconds")
            for rank in ("p50", "p99")
        ]
        shown = "".join(f"{'-' if value is None else f'{value:.3f}':>16}" for value in values)
        print(f"{name:20}{row['songs']:>7}{shown}")


def measure(store: TraceStore, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Start a service, load it in periods, and end it."""
    token = secrets.token_hex(16)
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": store.endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_BSP_SCHEDULE_DELAY": "500",
        PROFILE_FOLDER_VARIABLE: str(folder),
        PROFILE_TOKEN_VARIABLE: token,
    }
    weights = ["--tiny"] if options.weights == "tiny" else ["--weights", "synthetic", "--dit", options.dit]
    room = str(options.clients + 2)
    until = time.monotonic() + 60 * options.minutes
    periods: list[Period] = []
    result: dict[str, Any] = {}
    with running_service(
        [*weights, "--device", str(options.device), "--queue", room, "--kept", room], variables
    ) as url:
        measurement = Measurement(url, store, token, options)
        asyncio.run(measurement.warm_up())
        for pair in range(options.periods):
            if pair and time.monotonic() > until:
                print(f"{options.periods - pair} pairs of periods are left out, there is no time")
                break
            for profiles in (False, True):
                number = len(periods) + 1
                period = asyncio.run(measurement.period(number, profiles=profiles))
                periods.append(period)
                processing = spread([song.processing for song in period.others])
                print(
                    f"period {number}, {'with' if profiles else 'without'}: {len(period.others)} songs of the others, "
                    f"processing p50 {processing['p50']:.3f} s, p99 {processing['p99']:.3f} s; "
                    f"{len(period.asked)} more requests, {len(period.busy)} profiled",
                    flush=True,
                )
            result = {
                "clients": options.clients,
                "song_seconds": options.duration,
                "rows": rows_of(periods),
                "profiles": profiles_of(periods, folder),
                "outcomes": measurement.outcomes.counts,
                "ended": dict(sum((period.ended for period in periods), Counter[str]())),
                "periods": [
                    {"number": period.number, "profiles": period.profiles, **figures(period.others, period.latencies)}
                    for period in periods
                ],
            }
            write_result(options.output, {"environment": environment(), **result})
    return result


def verdict(result: dict[str, Any]) -> list[str]:
    """What went wrong, one line each; empty if nothing did."""
    profiles = result["profiles"]
    failures = [] if profiles else ["no request was profiled"]
    failures += [f"{found['profile']} is not linked" for found in profiles if not (found["linked"] and found["bytes"])]
    if set(result["ended"]) - {"done"}:
        failures.append(f"songs ended {result['ended']}")
    failures += [f"{count} profiles: {name}" for name, count in result["outcomes"].items() if name not in EXPECTED]
    return failures


def main() -> None:
    """Measure, print, and exit with 1 if a profile is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=available_device, default="auto")
    parser.add_argument("--weights", choices=["tiny", "synthetic"], default="tiny")
    parser.add_argument("--dit", default="acestep-v15-turbo", help="diffusion model, with --weights synthetic")
    parser.add_argument("--clients", type=whole_number, default=3, help="clients without the header")
    parser.add_argument("--duration", type=float, default=30.0, help="seconds of a song")
    parser.add_argument("--every", type=whole_number, default=5, help="seconds between two requests with the header")
    parser.add_argument("--seconds", type=whole_number, default=30, help="of a period")
    parser.add_argument("--periods", type=whole_number, default=4, help="of each kind")
    parser.add_argument("--minutes", type=minutes, default=math.inf, help="after these no pair of periods begins")
    parser.add_argument("--profiles", type=Path, help="folder that keeps the profiles; a temporary one if not given")
    parser.add_argument("--output", type=output_file, help="write the result as JSON")
    options = parser.parse_args()
    with trace_store() as store, tempfile.TemporaryDirectory() as temporary:
        folder = (options.profiles or Path(temporary)).absolute()
        result = measure(store, folder, options)
    show(result["rows"])
    print("profiles: " + ", ".join(f"{name} {count}" for name, count in sorted(result["outcomes"].items())))
    for found in result["profiles"]:
        until = "?" if found["seconds_until_written"] is None else f"{found['seconds_until_written']:.1f}"
        print(
            f"  {Path(found['profile']).name}: {found['bytes'] / 2**20:.1f} MiB, written {until} s after its song; "
            f"{'linked from the root span, and named after the trace' if found['linked'] else 'not linked'}"
        )
    if failures := verdict(result):
        raise SystemExit("\n".join(failures))


if __name__ == "__main__":
    main()
