"""How long does a new process take to its first song, and what takes the time?

    python -m benchmarks.first_song                                                # tiny model, CPU
    python -m benchmarks.first_song --device cuda --weights synthetic --starts 2   # true size, GPU

Each start is a separate process. Its parts follow each other: Python and its imports, loading, the first song, in which
kernels are built or read from Triton's cache, checked and recorded. The second song shows the time of a later one. The
first start on a machine builds the kernels; the others reuse them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from typing import Any, Final

from benchmarks.arguments import whole_number
from benchmarks.environment import add_model_options, environment, write_result

PARTS: Final = ("imports", "load", "first song", "second song")


def main() -> None:
    """Print a row per start."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--starts", type=whole_number, default=2, help="processes, one after the other")
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.started is not None:
        print(json.dumps(measured(options)))
        return
    rows = []
    print(f"{'start':>6}" + "".join(f"{part:>14}" for part in (*PARTS[:3], "to first song", PARTS[3])))
    for number in range(1, options.starts + 1):
        row = started(sys.argv[1:])
        row["to first song"] = sum(row[part] for part in PARTS[:3])
        rows.append(row)
        print(f"{number:>6}" + "".join(f"{row[part]:>12.2f} s" for part in (*PARTS[:3], "to first song", PARTS[3])))
    write_result(options.output, {"environment": environment(), "rows": rows})


def started(arguments: list[str]) -> dict[str, float]:
    """Seconds of each part, of a process that is started now."""
    command = [sys.executable, "-m", "benchmarks.first_song", *arguments, "--started", repr(time.time())]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def measured(options: argparse.Namespace) -> dict[str, float]:
    """The parts, in the process that is measured."""
    moments = [options.started]

    def passed() -> None:
        moments.append(time.time())

    # Imported here, because importing is one of the parts.
    from acestep.inference import generate_music
    from benchmarks.workload import prepare

    passed()
    loaded: Any = prepare(options)
    passed()
    for _ in range(2):
        generate_music(*loaded)
        passed()
    lengths = (end - start for start, end in itertools.pairwise(moments))
    return dict(zip(PARTS, lengths, strict=True))


if __name__ == "__main__":
    main()
