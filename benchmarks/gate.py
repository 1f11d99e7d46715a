"""How often the gate fails equal runs, and how often it finds a slowdown.

    python -m benchmarks.gate --processes 12 --repeat 7

Simulated: normal times with a standard deviation within a session and another one between sessions. Measured: every
process generates the same songs; many times, some are drawn as the baseline and two as candidates. Nothing has changed
between them, so every failure is a false alarm. ``--sessions FILE`` uses the times of an earlier result. Processes run
one after the other, and the result is written after each; with 20 s for a start, 150 s are enough for five:

    python -m benchmarks.gate --device cuda --weights synthetic --processes 5 --repeat 7 --minutes 2
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from acestep.inference import generate_music
from acestep_otel.profiler.benchmark.gate import DEFAULT_TOLERANCE, is_worse, spread_between
from benchmarks.arguments import minutes, whole_number
from benchmarks.environment import add_model_options, environment, write_result
from benchmarks.workload import prepare

TRIALS = 4_000
SPREADS = ((1.0, 0.0), (1.0, 1.0), (2.0, 1.0))
"""Standard deviations in percent: within a session, and between sessions."""
WARM_UPS = 3
BASELINES = (1, 2, 4)
"""Processes of a baseline."""


def session(runs: int, spread: float, drift: float, slowdown: float, draw: random.Random) -> list[float]:
    """Simulated times of one process."""
    level = (1 + slowdown) * (1 + draw.gauss(0, drift / 100))
    return [level * (1 + draw.gauss(0, spread / 100)) for _ in range(runs)]


def simulated(runs: int, spread: float, drift: float, slowdown: float, *, confirmed: bool) -> float:
    """Share of trials that fail."""
    draw = random.Random(1)
    failures = 0
    for _ in range(TRIALS):
        before = session(runs, spread, drift, 0.0, draw)
        candidates = [session(runs, spread, drift, slowdown, draw) for _ in range(2 if confirmed else 1)]
        failures += all(is_worse(before, after, DEFAULT_TOLERANCE) for after in candidates)
    return failures / TRIALS


def failures(sessions: Sequence[Sequence[float]], baselines: int) -> dict[str, float | int]:
    """Share of the ways to draw a baseline and candidates from equal sessions that fail.

    Args:
        sessions: runs of a process each.
        baselines: processes of the baseline.
    """
    draw = random.Random(1)
    alone = confirmed = 0
    for _ in range(TRIALS):
        drawn = draw.sample(sessions, baselines + 2)
        before = [seconds for runs in drawn[:baselines] for seconds in runs]
        tolerance = max(DEFAULT_TOLERANCE, spread_between(drawn[:baselines]))
        worse = [is_worse(before, after, tolerance) for after in drawn[baselines:]]
        alone += worse[0]
        confirmed += all(worse)
    return {"baselines": baselines, "failed_alone": alone / TRIALS, "failed_confirmed": confirmed / TRIALS}


def measured_here(options: argparse.Namespace) -> list[float]:
    """Seconds of the songs of this process."""
    models, song = prepare(options)
    for _ in range(WARM_UPS):
        generate_music(models, song)
    seconds = []
    for _ in range(options.repeat):
        start = time.perf_counter()
        generate_music(models, song)
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--processes", type=whole_number, default=12)
    parser.add_argument("--repeat", type=whole_number, default=7, help="songs of each process")
    parser.add_argument("--minutes", type=minutes, default=math.inf, help="after these no further process begins")
    parser.add_argument("--sessions", type=Path, help="result of an earlier run, whose times are used")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measured_here(options)))
        return
    rates = []
    print(f"{'spread %':>9}{'drift %':>9}{'confirmed':>11}{'false alarms %':>16}{'+3 %':>8}{'+5 %':>8}{'+10 %':>8}")
    for spread, drift in SPREADS:
        for confirmed in (False, True):
            found = [
                100 * simulated(options.repeat, spread, drift, slowdown, confirmed=confirmed)
                for slowdown in (0.0, 0.03, 0.05, 0.10)
            ]
            rates.append({"spread": spread, "drift": drift, "confirmed": confirmed, "failed_percent": found})
            words = "".join(f"{value:>8.1f}" for value in found[1:])
            print(f"{spread:>9g}{drift:>9g}{'yes' if confirmed else 'no':>11}{found[0]:>16.2f}{words}")
    command = [sys.executable, "-m", "benchmarks.gate", "--child", *sys.argv[1:]]
    sessions = [] if options.sessions is None else json.loads(options.sessions.read_text())["sessions"]
    until = time.monotonic() + 60 * options.minutes
    for number in range(0 if sessions else options.processes):
        if sessions and time.monotonic() > until:
            print(f"{options.processes - number} processes are left out, there is no time")
            break
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        sessions.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"process {number + 1} of {options.processes}: median {median(sessions[-1]):.3f} s", flush=True)
        write_result(options.output, {"environment": environment(), "simulated": rates, "sessions": sessions})
    measured = [failures(sessions, count) for count in BASELINES if count + 2 <= len(sessions)]
    medians = [median(runs) for runs in sessions]
    print(f"measured: {len(sessions)} equal processes, medians {min(medians):.3f} to {max(medians):.3f} s")
    for alarms in measured:
        print(
            f"  baseline of {alarms['baselines']}: {100 * alarms['failed_alone']:.2f} % fail, "
            f"{100 * alarms['failed_confirmed']:.2f} % when confirmed"
        )
    write_result(
        options.output,
        {"environment": environment(), "simulated": rates, "sessions": sessions, "measured_false_alarms": measured},
    )


if __name__ == "__main__":
    main()
