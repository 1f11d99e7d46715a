"""How long does a process take to import the tracing layer, and which modules are imported with it?

    python -m benchmarks.import_time

CPU time is given beside wall time, because wall time includes other work of the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

from benchmarks.arguments import output_file, whole_number
from benchmarks.environment import environment, write_result

PROGRAM = """
import json, sys, time
before = set(sys.modules)
start, cpu = time.perf_counter(), time.process_time()
from acestep_otel.instrumentor import AceStepInstrumentor
AceStepInstrumentor().instrument()
seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
heavy = sorted({"torch", "numpy", "diffusers", "opentelemetry.sdk"} & set(sys.modules))
print(json.dumps({"seconds": seconds, "cpu": cpu_seconds, "modules": len(set(sys.modules) - before), "heavy": heavy}))
"""


def main() -> None:
    """Import it in fresh processes, and print the median."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=whole_number, default=20)
    parser.add_argument("--output", type=output_file, help="write the result as JSON")
    options = parser.parse_args()
    runs = [
        json.loads(subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True).stdout)
        for _ in range(options.processes)
    ]
    wall, cpu = ([run[clock] * 1e3 for run in runs] for clock in ("seconds", "cpu"))
    result = {
        "wall_ms": {"fastest": min(wall), "median": statistics.median(wall)},
        "cpu_ms": {"fastest": min(cpu), "median": statistics.median(cpu)},
        "modules": runs[0]["modules"],
        "heavy_modules": runs[0]["heavy"],
    }
    for clock in ("wall_ms", "cpu_ms"):
        figures = result[clock]
        print(
            f"import and instrument, {clock[:4].strip('_')}: fastest {figures['fastest']:.0f} ms, "
            f"median {figures['median']:.0f} ms"
        )
    heavy = ", ".join(result["heavy_modules"]) or "none"
    print(f"modules imported: {result['modules']}; of torch, numpy, diffusers and the SDK: {heavy}")
    write_result(options.output, {"environment": environment(), **result})


if __name__ == "__main__":
    main()
