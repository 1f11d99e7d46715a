"""Does the serving example stay available, with constant memory and without leaking its callers' texts, under abuse?

    python -m benchmarks.abuse --minutes 10

A normal load runs in turns, alone and beside abuse of every kind that the service's tests contain, so that other work
of the machine affects both sides. The abuse: bodies of 50 MB, without an end, that are not JSON or do not match the
schema; invented hosts, methods, paths and queries; malformed trace headers and baggage of 60 kB; connections that send
nothing, half a request or a byte at a time; followers that disconnect. Each contains a marker word, also in captions
and lyrics that are accepted. At the end the word must not be in any output: log, spans, metrics, error responses.
Memory must be constant, the number of series the same, and the normal callers' 95th percentile close to that without
abuse.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from benchmarks.arguments import minutes, output_file, whole_number
from benchmarks.collectors import free_port
from benchmarks.environment import environment, write_result
from benchmarks.service import wait_until_healthy
from benchmarks.soak import EXIT_SECONDS, Memory, growth
from benchmarks.trace_store import TraceStore, trace_store
from examples.serving.load import Report, run_load, shown_latency

PLANTED: Final = "PLANTED"
QUIET_SHARE: Final = 0.3
"""Share of the time of the abuse in which the normal load runs alone, and then until the first count of series."""
TURNS: Final = 10
"""Maximum number of turns: the load alone, then beside the abuse."""
SHORTEST_TURN: Final = 20
"""Minimum seconds of abuse in a turn."""
IDLE_CONNECTIONS: Final = 1_100
"""More than the number of files that the service may open."""
USUAL_FILES: Final = 1_024
RECONNECT_SECONDS: Final = 10
"""Seconds until a closed connection is opened again."""
LARGE_BODY: Final = 50_000_000
ALLOWED_GROWTH: Final = 0.05
ALLOWED_SERIES: Final = 60
"""Allowance for rare answers, for example the first song that fails; a label that callers choose adds thousands."""
ALLOWED_SLOWDOWN: Final = 1.5
"""Factor on the 95th percentile: the abuse runs on the same machine, so its clients use processor time too."""
START_SECONDS: Final = 3
"""Seconds until the hostile clients' program runs."""
PAUSE_SECONDS: Final = 0.1
"""Seconds between two requests of one hostile client."""

Abuse = Callable[[httpx.AsyncClient, random.Random], Awaitable[httpx.Response | None]]


def word(draw: random.Random) -> str:
    """The marker word in a new spelling, so that each would be a separate series."""
    return f"{PLANTED}{draw.getrandbits(40):x}"


async def bad_body(http: httpx.AsyncClient, draw: random.Random) -> httpx.Response:
    """A body that does not match the schema, or is not JSON."""
    planted = word(draw)
    bodies = (
        f'{{"duration": NaN, "caption": "{planted}"}}',
        f'{{"caption": "{planted} \\ud83d"}}',
        f'{{"{planted}": 1}}',
        f'{{"caption": "{planted}',
        f'{{"duration": "{planted}"}}',
        f'"{planted}"',
        "[" * 100_000,
        f'{{"seed": {"9" * 6_000}}}',
        json.dumps({"lyrics": planted * 2_000}),
    )
    return await http.post("/songs", content=draw.choice(bodies).encode(), headers={"content-type": "application/json"})


async def large_body(http: httpx.AsyncClient, draw: random.Random) -> httpx.Response:
    """Fifty megabytes, with or without a declared length."""
    piece = word(draw).encode() * 1_000

    async def pieces() -> Any:
        for _ in range(LARGE_BODY // len(piece)):
            yield piece

    headers = {"content-type": "application/json"}
    if draw.random() < 0.5:
        headers["content-length"] = str(LARGE_BODY)
    return await http.post("/songs", content=pieces(), headers=headers)


async def made_up_request(http: httpx.AsyncClient, draw: random.Random) -> httpx.Response:
    """A host, method, path, query and user agent that do not exist."""
    method, path = draw.choice(
        [("GET", "/healthz"), ("GET", f"/{word(draw)}"), (word(draw), "/songs"), ("GET", "/songs")]
    )
    headers = {"host": word(draw), "user-agent": word(draw), "cookie": word(draw), "x-forwarded-for": word(draw)}
    return await http.request(method, path, params={word(draw): word(draw)}, headers=headers)


async def bad_trace_headers(http: httpx.AsyncClient, draw: random.Random) -> httpx.Response:
    """Headers that propagators cannot read."""
    header, value = draw.choice(
        [
            ("baggage", f"card={word(draw)} 1"),
            ("baggage", f"name={word(draw) * 4_000}"[:60_000]),
            ("traceparent", word(draw)),
            ("tracestate", f"{word(draw)}=,{word(draw)}"),
            ("x-force-trace", word(draw)),
        ]
    )
    return await http.post("/songs", json={"duration": 1}, headers={header: value})


async def abandoned_song(http: httpx.AsyncClient, draw: random.Random) -> httpx.Response:
    """One request in a hundred is a song with marker words that is accepted, followed briefly and cancelled."""
    if draw.random() < 0.99:
        return await http.get("/metrics")
    song = {"caption": word(draw), "lyrics": f"[Verse]\n{word(draw)}", "duration": 10, "inference_steps": 1}
    answer = await http.post("/songs", json=song)
    if answer.status_code == httpx.codes.ACCEPTED:
        location = answer.headers["Location"]
        with suppress(httpx.TimeoutException):
            await http.get(f"{location}/events", timeout=0.2)
        await http.delete(location)
    return answer


ABUSES: Final[tuple[Abuse, ...]] = (bad_body, large_body, made_up_request, bad_trace_headers, abandoned_song)


async def abuse_with(kind: Abuse, url: str, deadline: float, answers: Counter[str], quoted: list[str]) -> None:
    """One hostile client: one kind of request after the other."""
    draw = random.Random(kind.__name__)
    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        while time.monotonic() < deadline:
            try:
                answer = await kind(http, draw)
            except httpx.TransportError as error:
                # The service closed the connection, for example in the middle of a body that is too large.
                answers[f"{kind.__name__}: {type(error).__name__}"] += 1
            else:
                if answer is not None:
                    answers[f"{kind.__name__}: {answer.status_code}"] += 1
                    if PLANTED in answer.text:
                        quoted.append(f"{kind.__name__}: {answer.status_code}")
            await asyncio.sleep(PAUSE_SECONDS)


async def hold_connections(url: str, deadline: float, number: int) -> None:
    """Keep connections open that send nothing, half a request or a byte at a time, and open new ones for those lost."""
    address = urlsplit(url)

    async def hold(index: int) -> None:
        while time.monotonic() < deadline:
            try:
                reader, writer = await asyncio.open_connection(address.hostname, address.port)
            except OSError:
                await asyncio.sleep(1)
                continue
            with suppress(OSError):
                if index % 3:
                    writer.write(f"POST /songs HTTP/1.1\r\n{PLANTED}: ".encode())
                while time.monotonic() < deadline and not reader.at_eof():
                    if index % 3 == 2:
                        writer.write(b"x")
                    with suppress(TimeoutError):
                        async with asyncio.timeout(2):
                            await reader.read(1)
            writer.close()
            await asyncio.sleep(RECONNECT_SECONDS)

    await asyncio.gather(*(hold(index) for index in range(number)))


async def all_abuse(url: str, connections: int, seen: Path) -> None:
    """Every kind at the same time until SIGTERM; the results are written to a file."""
    answers: Counter[str] = Counter()
    quoted: list[str] = []
    never = float("inf")
    everything = asyncio.gather(
        *(abuse_with(kind, url, never, answers, quoted) for kind in ABUSES), hold_connections(url, never, connections)
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, everything.cancel)
    with suppress(asyncio.CancelledError):
        await everything
    seen.write_text(json.dumps({"answers": answers, "quoted": quoted, "cpu_seconds": time.process_time()}))


class Abusers:
    """The hostile clients, in a separate process that can be paused."""

    def __init__(self, url: str, connections: int, folder: Path) -> None:
        self._seen = folder / "seen.json"
        program = (
            "import asyncio, pathlib, sys\n"
            "from benchmarks.abuse import all_abuse\n"
            "asyncio.run(all_abuse(sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])))\n"
        )
        self._process = subprocess.Popen([sys.executable, "-c", program, url, str(connections), str(self._seen)])

    def hold(self) -> None:
        """Pause them; their connections stay open."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Resume them."""
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> dict[str, Any]:
        """End them, and return their results."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(120)
        return dict(json.loads(self._seen.read_text()))

    def kill(self) -> None:
        """End them in any case."""
        self._process.kill()
        self._process.wait()


@contextmanager
def abusers(url: str, connections: int) -> Iterator[Abusers]:
    """Start the abuse."""
    with tempfile.TemporaryDirectory() as folder:
        found = Abusers(url, connections, Path(folder))
        try:
            yield found
        finally:
            found.kill()


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    # The name of the program, in parentheses, may hold blanks.
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def series(url: str) -> tuple[int, str]:
    """Number of series that the service exposes, and the page."""
    page = httpx.get(f"{url}/metrics", timeout=60).text
    return sum(1 for line in page.splitlines() if line and not line.startswith("#")), page


async def normal_load(url: str, seconds: float, clients: int, seed: int = 0) -> tuple[Report, list[float]]:
    """The normal load, and how long ``/healthz`` took meanwhile."""
    latencies: list[float] = []

    async def watch() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            while True:
                start = time.monotonic()
                (await http.get("/healthz")).raise_for_status()
                latencies.append(time.monotonic() - start)
                await asyncio.sleep(0.5)

    watching = asyncio.ensure_future(watch())
    try:
        report = await run_load(url, clients=clients, seconds=seconds, seed=seed)
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
    return report, latencies


def run(
    store: TraceStore, *, seconds: float, clients: int, connections: int, launcher: Sequence[str] = ()
) -> dict[str, Any]:
    """Start a service, load and abuse it, end it, and check what it left."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    export = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": store.endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_LOGS_EXPORTER": "none",
    }
    # The limit that a process usually has, also where this one has another.
    limited = ["bash", "-c", f'ulimit -S -n {USUAL_FILES}; exec "$@"', "bash"]
    command = [*limited, *launcher, sys.executable, "-m", "examples.serving", "--tiny", "--port", str(port)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env={**os.environ, **export}, stdout=log, stderr=log)
        try:
            wait_until_healthy(url, process)
            turns = max(1, min(TURNS, int(seconds // SHORTEST_TURN)))
            alone, beside = Phase(process.pid, clients), Phase(process.pid, clients)
            memory = Memory(process.pid)
            with abusers(url, connections) as abuse:
                for turn in range(turns):
                    abuse.hold()
                    alone.add(url, seconds * QUIET_SHARE / turns)
                    abuse.go_on()
                    if turn == 0:
                        # Their program has to start; after that, each kind of answer has its series.
                        time.sleep(START_SECONDS)
                    beside.add(url, seconds / turns)
                    if turn == int(turns * QUIET_SHARE):
                        series_early, _ = series(url)
                seen = abuse.end()
            memory.stop()
            series_late, page = series(url)
            process.send_signal(signal.SIGTERM)
            start = time.monotonic()
            code = process.wait(60)
            exit_seconds = time.monotonic() - start
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        written = log.read()
    planted = {
        "log": PLANTED in written,
        "metrics": PLANTED in page,
        "telemetry": store.holds(PLANTED),
        "answers": bool(seen["quoted"]),
    }
    return {
        "turns": turns,
        "before": figures(alone.report, alone.healthy),
        "during": figures(beside.report, beside.healthy),
        "processors": {
            "of_the_machine": os.cpu_count(),
            "service_before": alone.cpu_seconds / alone.seconds,
            "service_during": beside.cpu_seconds / beside.seconds,
            "abusers": seen["cpu_seconds"] / beside.seconds,
        },
        "load_average": os.getloadavg()[1],
        "abuse": seen["answers"],
        "connections_held": connections,
        "planted_words_in": [place for place, is_there in planted.items() if is_there],
        "log_bytes": len(written),
        "log": [line for line in written.splitlines() if "torch" not in line][:20],
        "series": {"early": series_early, "late": series_late},
        "memory_bytes": {"first": memory.samples[0], "last": memory.samples[-1], "highest": max(memory.samples)},
        "memory_growth": growth(memory.samples),
        "exit_code": code,
        "exit_seconds": exit_seconds,
    }


class Phase:
    """Results of the normal callers in all turns of one kind, and the service's processor time."""

    def __init__(self, pid: int, clients: int) -> None:
        self._pid = pid
        self._clients = clients
        self.report = Report()
        self.healthy: list[float] = []
        self.seconds = 0.0
        self.cpu_seconds = 0.0

    def add(self, url: str, seconds: float) -> None:
        """One more turn."""
        started, used = time.monotonic(), cpu_seconds(self._pid)
        # Each turn is a separate load.
        found, healthy = asyncio.run(normal_load(url, seconds, self._clients, seed=int(started * 1_000) % 2**31))
        self.seconds += time.monotonic() - started
        self.cpu_seconds += cpu_seconds(self._pid) - used
        self.report.ended.update(found.ended)
        self.report.turned_away += found.turned_away
        self.report.latencies += found.latencies
        self.report.traces += found.traces
        self.healthy += healthy


def figures(report: Report, healthy: list[float]) -> dict[str, Any]:
    """Results of the normal callers."""
    return {
        "accepted": report.accepted,
        "turned_away": report.turned_away,
        "ended": dict(report.ended),
        "latency_seconds": {"p50": report.latency(0.5), "p95": report.latency(0.95)},
        "healthz_seconds": {"p50": sorted(healthy)[len(healthy) // 2], "highest": max(healthy)},
    }


def verdict(result: dict[str, Any]) -> list[str]:
    """What went wrong, one line each; empty if nothing did."""
    failures = []
    if result["planted_words_in"]:
        failures.append(f"marker words in: {', '.join(result['planted_words_in'])}")
    if result["memory_growth"] > ALLOWED_GROWTH:
        failures.append(f"memory grew by {result['memory_growth']:.1%}")
    if result["series"]["late"] > result["series"]["early"] + ALLOWED_SERIES:
        failures.append(f"series grew from {result['series']['early']} to {result['series']['late']}")
    if set(result["during"]["ended"]) - {"done", "cancelled"}:
        failures.append(f"songs of normal callers ended {result['during']['ended']}")
    before, during = (result[phase]["latency_seconds"]["p95"] for phase in ("before", "during"))
    if before is None or during is None:
        failures.append("no song of a normal caller was finished, so there is no percentile to compare")
    elif (slowdown := during / before) > ALLOWED_SLOWDOWN:
        failures.append(f"the 95th percentile of normal callers grew by {slowdown:.2f}")
    if result["exit_seconds"] > EXIT_SECONDS:
        failures.append(f"the exit took {result['exit_seconds']:.1f} s")
    return failures


def main() -> None:
    """Run the abuse, print the figures, and exit with 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=minutes, default=10)
    parser.add_argument("--clients", type=whole_number, default=2)
    parser.add_argument("--connections", type=whole_number, default=IDLE_CONNECTIONS)
    parser.add_argument("--output", type=output_file, help="write the result as JSON")
    parser.add_argument("--agent", action="store_true", help="start the service under opentelemetry-instrument")
    options = parser.parse_args()
    launcher = [str(Path(sys.executable).with_name("opentelemetry-instrument"))] if options.agent else []
    with trace_store([PLANTED]) as store:
        result = run(
            store,
            seconds=options.minutes * 60,
            clients=options.clients,
            connections=options.connections,
            launcher=launcher,
        )
    for phase in ("before", "during"):
        seen = result[phase]
        print(
            f"{phase}: accepted {seen['accepted']}, ended {seen['ended']}, "
            f"p50 {shown_latency(seen['latency_seconds']['p50'])}, "
            f"p95 {shown_latency(seen['latency_seconds']['p95'])}, "
            f"/healthz p50 {seen['healthz_seconds']['p50'] * 1e3:.0f} ms, "
            f"at most {seen['healthz_seconds']['highest'] * 1e3:.0f} ms"
        )
    busy = result["processors"]
    print(
        f"processors in use: {busy['service_before']:.2f} by the service before, {busy['service_during']:.2f} during, "
        f"{busy['abusers']:.2f} by the hostile clients, of {busy['of_the_machine']}; "
        f"load average {result['load_average']:.1f}"
    )
    print("abuse: " + ", ".join(f"{kind} {count}" for kind, count in sorted(result["abuse"].items())))
    mebibytes = {moment: size / 2**20 for moment, size in result["memory_bytes"].items()}
    print("memory {first:.0f} MiB at first, {last:.0f} at last, {highest:.0f} at most".format(**mebibytes), end="")
    print(f"; growth after warm-up {result['memory_growth']:+.2%}")
    print(f"series {result['series']['early']} at first, {result['series']['late']} at last")
    print(f"log {result['log_bytes']} bytes; marker words in: {', '.join(result['planted_words_in']) or 'nothing'}")
    print(f"exit code {result['exit_code']} after {result['exit_seconds']:.1f} s")
    write_result(options.output, {"environment": environment(), "minutes": options.minutes, **result})
    if failures := verdict(result):
        raise SystemExit("\n".join(failures))


if __name__ == "__main__":
    main()
