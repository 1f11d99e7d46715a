"""Speed-up of several cards, and its losses: the benchmark's matrix and the service on 1, 2, 4, ... cards.

    python -m benchmarks.scaling --counts 1 2 4 --output benchmarks/results/scaling-h100.json
    python -m benchmarks.scaling --tiny --counts 1 2 --seconds 10      # processes on the CPU

Three parts, all of them unless ``--part`` names one:

* ``matrix``: the same cells on each number of cards (``--gpus``). Speed-up is the time from the first request to the
  end of the last, on one card over that on several; that of the whole command, including start and loading, is reported
  too. The losses are split into cards that wait at the end for the others, the time between requests, and requests that
  take longer than on one card.
* ``service``: ``examples/serving`` under a closed loop: each client requests the same song, follows it to its end and
  repeats. The load per card is the same for every number of cards. Songs, waits and latencies are counted after the
  warm-up; the wait in the queue is from a song's acceptance to a worker. The service's metrics split the time of a card
  into that of a song on one card, what a song takes longer, and the gap between two songs. The processor time of the
  service's process and of the load shows whether one of them is the limit.
* ``disturb``: one cell on the first card alone, and then with the same work on all cards: power, PCIe and the host's
  cores are shared. Clocks and power are the driver's, read twice a second.

Everything that is measured runs in separate processes; this one does not use CUDA. The result is written after each
number of cards.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pynvml

from acestep.cards import Card, choose_cards
from acestep.errors import AceStepError
from acestep_otel import semconv
from acestep_otel.profiler.report.spans import FinishedSpan
from benchmarks.arguments import output_file, whole_number
from benchmarks.environment import environment, write_result

if TYPE_CHECKING:
    from examples.serving.load import Report

PARTS: Final = ("matrix", "service", "disturb")
CLIENTS_PER_CARD: Final = 3
"""One whose song is generated, and two that wait: a card is never idle."""
WARM_UP_SECONDS: Final = 10.0
SAMPLE_SECONDS: Final = 0.5


def gpus(count: int, *, tiny: bool) -> str:
    """The value of ``--gpus`` for the first cards."""
    return f"cpu:{count}" if tiny else ",".join(map(str, range(count)))


def models(*, tiny: bool) -> list[str]:
    """What is run."""
    return ["--tiny"] if tiny else ["--weights", "synthetic"]


# --- The matrix ---------------------------------------------------------------------------------------------------


def run_matrix(cards: str, options: argparse.Namespace, *more: str) -> dict[str, Any]:
    """Run the benchmark once and read its times from its trace and its result file."""
    with tempfile.TemporaryDirectory() as folder:
        result, trace = Path(folder, "result.json"), Path(folder, "trace.jsonl")
        command = [
            sys.executable,
            "-m",
            "acestep_otel.profiler",
            "--mode",
            "benchmark",
            "--gpus",
            cards,
            "--no-progress",
        ]
        command += [*models(tiny=options.tiny), "--benchmark-output", str(result), "--trace-output", str(trace), *more]
        start = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - start
        with trace.open(encoding="utf-8") as lines:
            spans = list(FinishedSpan.from_otlp_json(lines))
        if options.traces is not None:
            options.traces.mkdir(parents=True, exist_ok=True)
            trace.replace(options.traces / f"matrix-{cards.replace(',', '-').replace(':', '-')}.jsonl")
        rows = json.loads(result.read_text("utf-8"))["results"]
    return {"cards": cards, "command_seconds": seconds, **from_trace(spans), "rows": [row_of(row) for row in rows]}


def row_of(row: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a row."""
    return {
        "config": row["config"],
        "status": row["status"],
        "wall_time": row["wall_time"],
        "card": row["card"]["label"],
    }


def from_trace(spans: Sequence[FinishedSpan]) -> dict[str, Any]:
    """When each card worked, by the spans of its requests, warm-ups included."""
    requests: dict[str, list[FinishedSpan]] = defaultdict(list)
    for span in spans:
        if span.name == semconv.GENERATE_MUSIC:
            requests[str(span.attributes[semconv.WORKER])].append(span)
    first = min(span.start_ns for found in requests.values() for span in found)
    last = max(span.end_ns for found in requests.values() for span in found)
    (root,) = [span for span in spans if span.name == semconv.BENCHMARK]
    cards = {
        label: {
            "requests": len(found),
            "working": sum(span.end_ns - span.start_ns for span in found) / 1e9,
            "loading": (min(span.start_ns for span in found) - root.start_ns) / 1e9,
            "waiting_at_the_end": (last - max(span.end_ns for span in found)) / 1e9,
        }
        for label, found in sorted(requests.items())
    }
    return {"seconds": (last - first) / 1e9, "by_card": cards}


def losses(one: dict[str, Any], several: dict[str, Any]) -> dict[str, float]:
    """Where the cards' time went, as shares of all of it: they add up to 1."""
    cards = several["by_card"].values()
    whole = several["seconds"] * len(cards)
    working = sum(card["working"] for card in cards)
    alone = sum(card["working"] for card in one["by_card"].values())
    at_the_end = sum(card["waiting_at_the_end"] for card in cards)
    return {
        "work_of_one_card": alone / whole,
        "requests_that_took_longer": (working - alone) / whole,
        "waiting_at_the_end": at_the_end / whole,
        "between_requests": (whole - working - at_the_end) / whole,
    }


def measure_matrix(options: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """The matrix on each number of cards; yields the runs until now after each."""
    runs: list[dict[str, Any]] = []
    for count in options.counts:
        run = run_matrix(gpus(count, tiny=options.tiny), options, *options.matrix)
        run = {"count": count, **run}
        runs.append(run)
        first = runs[0] if options.baseline is None else options.baseline["matrix"][0]
        speed_up = first["seconds"] / run["seconds"] * first["count"]
        run |= {
            "speed_up": speed_up,
            "efficiency": speed_up / count,
            "speed_up_of_the_command": first["command_seconds"] / run["command_seconds"] * first["count"],
            "share_of_the_time": losses(first, run),
        }
        print(
            f"matrix on {count}: {len(run['rows'])} cells in {run['seconds']:.1f} s, speed-up {speed_up:.2f}, "
            f"efficiency {run['efficiency']:.1%}; command {run['command_seconds']:.1f} s, speed-up "
            f"{run['speed_up_of_the_command']:.2f}; "
            + ", ".join(f"{name.replace('_', ' ')} {share:.1%}" for name, share in run["share_of_the_time"].items())
        )
        yield runs


# --- The service --------------------------------------------------------------------------------------------------


def run_service(count: int, options: argparse.Namespace) -> dict[str, Any]:
    """Start and load a service on some cards."""
    # Only this part needs the service's dependencies.
    from benchmarks.service import running_service

    clients = CLIENTS_PER_CARD * count
    arguments = [*models(tiny=options.tiny), "--gpus", gpus(count, tiny=options.tiny)]
    arguments += ["--queue", str(clients), "--kept", str(4 * clients)]
    with running_service(arguments, {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}) as url:
        return {"count": count, "clients": clients, **asyncio.run(load_service(url, count, clients, options))}


async def load_service(url: str, count: int, clients: int, options: argparse.Namespace) -> dict[str, Any]:
    """Load a service that is running, and read its metrics at the end of the warm-up and at the end."""
    from benchmarks.service import Reading, seconds_per_song
    from examples.serving.load import run_load

    song = {"duration": options.duration, "inference_steps": 8, "seed": 1}
    load = asyncio.create_task(run_load(url, clients=clients, seconds=WARM_UP_SECONDS + options.seconds, song=song))
    await asyncio.sleep(WARM_UP_SECONDS)
    before, own = await asyncio.to_thread(Reading.now, url), time.process_time()
    await asyncio.sleep(options.seconds)
    after, own = await asyncio.to_thread(Reading.now, url), time.process_time() - own
    figures = seen(await load, before.moment, after.moment)
    split = seconds_per_song(before, after, count)
    split["processor"]["load"] = own / (after.songs - before.songs)
    return {**figures, "seconds_per_song": split}


def seen(report: Report, start: float, end: float) -> dict[str, Any]:
    """Figures of the time between warm-up and the end of the load: afterwards there are fewer clients than cards.

    Args:
        report: of the load.
        start: end of the warm-up, by the monotonic clock.
        end: of the time that counts.
    """
    from examples.serving.load import quantile

    counted = sorted((moment, worker) for moment, worker in report.finished if start <= moment <= end)
    if len(counted) < 2:
        raise SystemExit(f"{len(counted)} songs ended within {end - start:.0f} s: choose more --seconds")
    # Between the first and the last end: whole songs, and no part of one at either side.
    per_hour = (len(counted) - 1) / (counted[-1][0] - counted[0][0]) * 3600
    # The first songs wait for kernels that are built and graphs that are captured.
    waits = [wait for moment, wait in report.waits if start <= moment <= end]
    ended = zip(report.finished, report.latencies, strict=True)
    latencies = [latency for (moment, _), latency in ended if start <= moment <= end]
    return {
        "songs": len(counted),
        "songs_per_hour": per_hour,
        "by_card": dict(sorted(Counter(str(worker) for _, worker in counted).items())),
        "queue_wait_seconds": {"p50": quantile(waits, 0.5), "p95": quantile(waits, 0.95)},
        "latency_seconds": {"p50": quantile(latencies, 0.5), "p95": quantile(latencies, 0.95)},
        "ended": dict(report.ended),
        "turned_away": report.turned_away,
    }


def losses_of_service(one: dict[str, Any], several: dict[str, Any]) -> dict[str, float]:
    """Where the cards' time went, as shares of all of it: they add up to 1.

    Args:
        one: ``seconds_per_song`` on the smallest number of cards.
        several: on more.
    """
    alone, working, between = one["generating"], several["generating"], several["between_songs"]
    whole = working + between
    return {
        "work_of_one_card": alone / whole,
        "songs_that_took_longer": (working - alone) / whole,
        "between_songs": between / whole,
    }


def measure_service(options: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """The service on each number of cards; yields the runs until now after each."""
    runs: list[dict[str, Any]] = []
    for count in options.counts:
        run = run_service(count, options)
        runs.append(run)
        first = runs[0] if options.baseline is None else options.baseline["service"][0]
        speed_up = run["songs_per_hour"] / first["songs_per_hour"] * first["count"]
        wait = run["queue_wait_seconds"]["p95"]
        run |= {
            "speed_up": speed_up,
            "efficiency": speed_up / count,
            "p95_wait_over_one_card": wait / first["queue_wait_seconds"]["p95"],
        }
        split = run["seconds_per_song"]
        if "seconds_per_song" in first:
            run["share_of_the_time"] = losses_of_service(first["seconds_per_song"], split)
        print(
            f"service on {count}: {run['songs_per_hour']:.0f} songs of {options.duration:g} s an hour, speed-up "
            f"{speed_up:.2f}, efficiency {run['efficiency']:.1%}; p95 of the queue wait {wait:.2f} s with "
            f"{CLIENTS_PER_CARD} clients per card, x {run['p95_wait_over_one_card']:.2f} of one card"
        )
        print(
            f"  a song: {1000 * split['generating']:.1f} ms on its card ("
            + ", ".join(f"{name} {1000 * seconds:.1f}" for name, seconds in split["stages"].items())
            + f"), {1000 * split['between_songs']:.1f} ms until the next; processors: "
            + ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in split["processor"].items())
        )
        if "share_of_the_time" in run:
            shares = run["share_of_the_time"].items()
            print("  " + ", ".join(f"{name.replace('_', ' ')} {share:.1%}" for name, share in shares))
        yield runs


# --- Whether cards disturb each other -----------------------------------------------------------------------------


class Clocks:
    """Clock and power of every card, by the driver, while a block runs; nothing without one."""

    def __init__(self, cards: Sequence[Card]) -> None:
        self._cards = [card for card in cards if card.uuid is not None]
        self._samples: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Clocks:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()

    def means(self) -> dict[str, dict[str, float]]:
        """Mean of the busier half of the samples, by card: loading and pauses are not of interest."""
        found = {}
        for label, samples in self._samples.items():
            busier = sorted(samples, key=lambda sample: sample[1])[len(samples) // 2 :]
            found[label] = {
                "sm_clock_mhz": statistics.mean(clock for clock, _ in busier),
                "power_watts": statistics.mean(power for _, power in busier),
            }
        return found

    def _sample(self) -> None:
        if not self._cards:
            return
        handles = {card.label: pynvml.nvmlDeviceGetHandleByUUID(card.uuid) for card in self._cards}
        while not self._stop.wait(SAMPLE_SECONDS):
            for label, handle in handles.items():
                clock = pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)
                self._samples[label].append((clock, pynvml.nvmlDeviceGetPowerUsage(handle) / 1000))


def measure_disturbance(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The same cell alone and beside the same work on all other cards; yields once."""
    count = max(options.counts)
    cards = choose_cards(gpus(count, tiny=options.tiny))
    # On the CPU every process counts as a card, and all share the cores.
    each = ["cpu:1"] * count if options.tiny else [str(number) for number in range(count)]
    cell = ["--duration", f"{options.duration:g}", "--batch-size", "1", "--inference-steps", "8"]
    cell += ["--repeat", str(options.repeat)]
    with Clocks(cards) as clocks:
        alone = run_matrix(each[0], options, *cell)
    alone["clocks"] = clocks.means()
    beside: list[dict[str, Any]] = [{} for _ in each]

    def run(number: int) -> None:
        beside[number] = run_matrix(each[number], options, *cell)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    with Clocks(cards) as clocks:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if not all(beside):
        raise SystemExit("a run beside the others failed")
    ratios = [
        [row["wall_time"] / same["wall_time"] for row, same in zip(run["rows"], alone["rows"], strict=True)]
        for run in beside
    ]
    for row, on_the_first, *others in zip(alone["rows"], *ratios, strict=True):
        thinking = "thinking" if row["config"]["thinking"] else "not thinking"
        print(
            f"{options.duration:g} s x 1, {thinking}: {row['wall_time']:.3f} s alone; with {count} cards busy "
            f"x {on_the_first:.3f} on the same card, x {statistics.median([on_the_first, *others]):.3f} in the middle"
        )
    yield {"cards": count, "alone": alone, "beside": beside, "ratios": ratios, "clocks_beside": clocks.means()}


def earlier(word: str) -> dict[str, Any]:
    """A result of this program, where one command would take too long for all numbers of cards."""
    try:
        found = json.loads(Path(word).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{word}: {error}") from None
    if not isinstance(found, dict) or "clients_per_card" not in found:
        raise argparse.ArgumentTypeError(f"{word} is not a result of this program")
    return found


def main() -> None:
    """Measure, print, and write the result after each number of cards of each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=whole_number, nargs="+", default=[1, 2], help="numbers of cards, ascending")
    parser.add_argument("--part", choices=PARTS, action="append", help="may be repeated; default: all parts")
    parser.add_argument("--tiny", action="store_true", help="tiny models in processes on the CPU")
    parser.add_argument("--seconds", type=whole_number, default=60, help="of load on the service, after its warm-up")
    parser.add_argument("--duration", type=float, default=30.0, help="of the service's songs and of the disturbed cell")
    parser.add_argument(
        "--repeat", type=whole_number, default=5, help="of the cell that is run alone and beside others"
    )
    parser.add_argument(
        "--matrix",
        type=lambda text: text.split(),
        default=["--inference-steps", "8"],
        help="options of the benchmark: the share of the default matrix that is run; '--inference-steps 8' is half",
    )
    parser.add_argument("--traces", type=Path, help="folder that keeps the trace of every run of the matrix")
    parser.add_argument("--baseline", type=earlier, help="earlier result, whose first number of cards is compared with")
    parser.add_argument("--output", type=output_file, help="write the result as JSON")
    options = parser.parse_args()
    options.counts = sorted(set(options.counts))
    try:
        cards = choose_cards(gpus(max(options.counts), tiny=options.tiny))
    except AceStepError as error:
        parser.error(f"--counts {max(options.counts)}: {error}")
    for card in cards:
        print(card)
    # In a process of its own, because it uses CUDA.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        described = process.submit(environment).result()
    result: dict[str, Any] = {
        "environment": described,
        "counts": options.counts,
        "matrix_options": options.matrix,
        "song_seconds": options.duration,
        "clients_per_card": CLIENTS_PER_CARD,
    }
    measures: dict[str, Callable[[argparse.Namespace], Iterator[Any]]] = {
        "matrix": measure_matrix,
        "service": measure_service,
        "disturb": measure_disturbance,
    }
    for part in options.part or PARTS:
        # Written after each number of cards: a failure or an interruption loses none that has been measured.
        for measured in measures[part](options):
            result[part] = measured
            write_result(options.output, result)


if __name__ == "__main__":
    main()
