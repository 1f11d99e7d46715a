"""Is the serving example stable? Its queue is kept full for the given time, on tiny models.

    python -m benchmarks.soak --minutes 30

More clients than places in the queue (`examples/serving/load.py` states the mix) request songs. At the end every
accepted request must have a complete trace, or its missing spans must be counted as dropped; no span may lack its
parent; memory of the service must not have grown; and SIGTERM must end it in time.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import httpx

from acestep_otel import semconv
from benchmarks.arguments import minutes, output_file, whole_number
from benchmarks.collectors import free_port
from benchmarks.environment import environment, write_result
from benchmarks.service import wait_until_healthy
from benchmarks.trace_store import StoredSpan, TraceStore, trace_store
from examples.serving.load import Report, run_load, shown_latency

EXIT_SECONDS: Final = 10.0
"""Limit of the exit: two for open connections, five for telemetry, and the rest for a step of a busy machine."""
SAMPLE_SECONDS: Final = 1.0
WARM_UP_SHARE: Final = 0.2
"""Share of the memory samples that is skipped: caches and pools fill up first."""
ALLOWED_GROWTH: Final = 0.05
DROPPED: Final = re.compile(
    r'^otel_sdk_processor_span_processed_total\{.*error_type="queue_full".*\} (\S+)', re.MULTILINE
)
STAGES: Final = (semconv.CONDITION, semconv.DIT, semconv.VAE_DECODE, semconv.AUDIO_SAVE)


class Memory:
    """Samples of a process's resident memory, in bytes."""

    def __init__(self, process_id: int) -> None:
        self._status = Path(f"/proc/{process_id}/statm")
        self._stop = threading.Event()
        self.samples: list[int] = []
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop sampling."""
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self._stop.wait(SAMPLE_SECONDS):
            self.samples.append(int(self._status.read_text().split()[1]) * page)


def growth(samples: Sequence[int]) -> float:
    """Growth from the first quarter after the warm-up to the last one, as a share; zero without enough samples."""
    settled = samples[int(len(samples) * WARM_UP_SHARE) :]
    quarter = len(settled) // 4
    if quarter == 0:
        return 0.0
    return statistics.median(settled[-quarter:]) / statistics.median(settled[:quarter]) - 1


def fault_of(trace: Sequence[StoredSpan]) -> str | None:
    """What is wrong with the trace of an accepted request; ``None`` when it is complete."""
    by_name: dict[str, list[StoredSpan]] = {}
    for span in trace:
        by_name.setdefault(span.name, []).append(span)
    if "POST /songs" not in by_name or semconv.QUEUE_WAIT not in by_name:
        return "no span of the request or of its wait"
    known = {span.span_id for span in trace}
    # The caller's own span is not exported here: the request's span is the only one whose parent may be missing.
    if any(span.parent_id not in known for span in trace if span.name != "POST /songs"):
        return "a lost parent"
    if by_name[semconv.QUEUE_WAIT][0].attributes[semconv.OUTCOME] != "ok":
        return None
    roots = by_name.get(semconv.GENERATE_MUSIC, [])
    if len(roots) != 1:
        return f"{len(roots)} roots of the song"
    if {semconv.ERROR_TYPE, semconv.OUTCOME} & roots[0].attributes.keys():
        return None
    if any(len(by_name.get(stage, ())) != 1 for stage in STAGES):
        return "a stage is missing"
    if len(by_name.get(semconv.DIT_STEP, ())) != by_name[semconv.DIT][0].attributes[semconv.DIT_STEPS]:
        return "a step is missing"
    return None


def soak(store: TraceStore, *, seconds: float, clients: int, queue: int) -> dict[str, Any]:
    """Start and load a service, end it, and check what it left."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    export = {"OTEL_EXPORTER_OTLP_ENDPOINT": store.endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    command = [sys.executable, "-m", "examples.serving", "--tiny", "--port", str(port), "--queue", str(queue)]
    process = subprocess.Popen(command, env={**os.environ, **export})
    try:
        wait_until_healthy(url, process)
        memory = Memory(process.pid)
        report = asyncio.run(run_load(url, clients=clients, seconds=seconds))
        memory.stop()
        dropped = sum(float(count) for count in DROPPED.findall(httpx.get(f"{url}/metrics").text))
        process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        code = process.wait(60)
        exit_seconds = time.monotonic() - start
    finally:
        process.kill()
        process.wait()
    faults = Counter(fault for trace in report.traces if (fault := fault_of(store.trace(trace))) is not None)
    return {
        **seen_by_clients(report),
        **seen_by_the_service(memory, code, exit_seconds),
        "spans": len(store),
        "spans_dropped": int(dropped),
        "incomplete_traces": sum(faults.values()),
        "faults": dict(faults),
    }


def seen_by_clients(report: Report) -> dict[str, Any]:
    """Figures of the load."""
    return {
        "accepted": report.accepted,
        "turned_away": report.turned_away,
        "ended": dict(report.ended),
        "latency_seconds": {"p50": report.latency(0.5), "p99": report.latency(0.99)},
    }


def seen_by_the_service(memory: Memory, code: int, exit_seconds: float) -> dict[str, Any]:
    """Figures of its process."""
    return {
        "memory_bytes": {"first": memory.samples[0], "last": memory.samples[-1], "highest": max(memory.samples)},
        "memory_growth": growth(memory.samples),
        "exit_code": code,
        "exit_seconds": exit_seconds,
    }


def verdict(result: dict[str, Any]) -> list[str]:
    """What went wrong, one line each; empty if nothing did."""
    failures = []
    if result["incomplete_traces"] and not result["spans_dropped"]:
        failures.append(f"{result['incomplete_traces']} incomplete traces and no counted drop: {result['faults']}")
    if "lost" in result["ended"]:
        failures.append(f"{result['ended']['lost']} songs did not end")
    if result["memory_growth"] > ALLOWED_GROWTH:
        failures.append(f"memory grew by {result['memory_growth']:.1%}")
    if result["exit_seconds"] > EXIT_SECONDS:
        failures.append(f"the exit took {result['exit_seconds']:.1f} s")
    return failures


def main() -> None:
    """Run the soak test, print the figures, and exit with 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=minutes, default=30)
    parser.add_argument("--clients", type=whole_number, default=12)
    parser.add_argument("--queue", type=whole_number, default=8)
    parser.add_argument("--output", type=output_file, help="write the result as JSON")
    options = parser.parse_args()
    with trace_store() as store:
        result = soak(store, seconds=options.minutes * 60, clients=options.clients, queue=options.queue)
    mebibytes = {moment: size / 2**20 for moment, size in result["memory_bytes"].items()}
    print(f"accepted {result['accepted']}, turned away {result['turned_away']}, ended {result['ended']}")
    p50, p99 = (shown_latency(result["latency_seconds"][share]) for share in ("p50", "p99"))
    print(f"latency p50 {p50}, p99 {p99}")
    print("memory {first:.0f} MiB at first, {last:.0f} at last, {highest:.0f} at most; ".format(**mebibytes), end="")
    print(f"growth after warm-up {result['memory_growth']:+.2%}")
    print(
        f"spans {result['spans']}, dropped {result['spans_dropped']}, traces incomplete {result['incomplete_traces']}"
    )
    print(f"exit code {result['exit_code']} after {result['exit_seconds']:.1f} s")
    write_result(options.output, {"environment": environment(), "minutes": options.minutes, **result})
    if failures := verdict(result):
        raise SystemExit("\n".join(failures))


if __name__ == "__main__":
    main()
