"""What the GPU did, read from a trace of torch.profiler: work by the range that launched it, and synchronisations."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

Interval = tuple[float, float]
"""Start and end in seconds."""

WORK: Final = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
LAUNCHES: Final = frozenset({"cuda_runtime", "cuda_driver"})
SYNCHRONISATIONS: Final = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def load_events(trace: Path) -> list[dict[str, Any]]:
    """Every event of an exported Chrome trace."""
    events: list[dict[str, Any]] = json.loads(trace.read_text())["traceEvents"]
    return events


def device_intervals(events: Iterable[Mapping[str, Any]], prefix: str) -> dict[str, Interval]:
    """From the first to the last piece of work on the GPU that was launched inside each range.

    Launches are matched to ranges by thread and time, and to the work by the profiler's correlation number, which is
    also that of everything a replayed CUDA graph does.

    Args:
        events: of the trace.
        prefix: of the ranges' names, which are unique.

    Returns:
        Interval by name without the prefix; ranges that launched nothing are absent.
    """
    ranges, launches, work = _sorted_by_kind(events, prefix)
    found: dict[str, Interval] = {}
    for thread, own in ranges.items():
        times = sorted(launches.get(thread, ()))
        starts = [start for start, _ in times]
        for name, start, end in own:
            done = [
                interval
                for _, correlation in times[bisect_left(starts, start) : bisect_right(starts, end)]
                for interval in work.get(correlation, ())
            ]
            if done:
                found[name] = (min(begin for begin, _ in done), max(finish for _, finish in done))
    return found


def synchronisations(events: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How often the host waited for the device, by call."""
    counted = Counter(event["name"] for event in events if event.get("cat") in LAUNCHES)
    return {name: counted[name] for name in SYNCHRONISATIONS}


def _sorted_by_kind(
    events: Iterable[Mapping[str, Any]], prefix: str
) -> tuple[dict[Any, list[tuple[str, float, float]]], dict[Any, list[tuple[float, int]]], dict[int, list[Interval]]]:
    ranges = defaultdict(list)
    launches = defaultdict(list)
    work = defaultdict(list)
    for event in events:
        if event.get("ph") != "X":
            continue
        kind, start = event.get("cat"), event["ts"] / 1e6
        end = start + event.get("dur", 0) / 1e6
        if kind == "user_annotation" and event["name"].startswith(prefix):
            ranges[event["tid"]].append((event["name"].removeprefix(prefix), start, end))
        elif kind in LAUNCHES and "correlation" in event.get("args", {}):
            launches[event["tid"]].append((start, event["args"]["correlation"]))
        elif kind in WORK and "correlation" in event.get("args", {}):
            work[event["args"]["correlation"]].append((start, end))
    return ranges, launches, work
