"""What the GPU did, read from a trace of torch.profiler: work by the range that launched it, and synchronisations."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Final

Interval = tuple[float, float]
"""Start and end in seconds."""
Stream = tuple[int, int]
"""Number of the device, and of the stream on it."""

WORK: Final = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
LAUNCHES: Final = frozenset({"cuda_runtime", "cuda_driver"})
SYNCHRONISATIONS: Final = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


@dataclass(frozen=True, slots=True)
class RangeIntervals:
    """When the GPU was busy with a range, and when its stream worked on it.

    A CUDA event completes when everything launched on its stream before it is done, and as soon as it is recorded where
    that is so already. The stream interval is between two such events, recorded as the host opens and closes the
    range. The range's stream is the one on which its first launch works (several, where that is a graph with branches).

    Attributes:
        work: from the start of the first to the end of the last piece of work that was launched inside the range, on
            any stream.
        stream: starts at the later of two moments: the host opens the range; what any thread launched on the stream
            before that is done. Ends at the latest of three: the host closes the range; what any thread launched on the
            stream before that is done; the range's own work, on any stream, is done.
    """

    work: Interval
    stream: Interval

    @property
    def work_seconds(self) -> float:
        """Length of the work interval."""
        return self.work[1] - self.work[0]

    @property
    def stream_seconds(self) -> float:
        """Length of the stream interval."""
        return self.stream[1] - self.stream[0]

    @property
    def idle_seconds(self) -> float:
        """Of the stream interval, the time before the first and after the last piece of the range's work."""
        return max(self.work[0] - self.stream[0], 0.0) + max(self.stream[1] - self.work[1], 0.0)


def load_events(trace: Path) -> list[dict[str, Any]]:
    """Every event of an exported Chrome trace."""
    events: list[dict[str, Any]] = json.loads(trace.read_text())["traceEvents"]
    return events


def device_intervals(events: Iterable[Mapping[str, Any]], prefix: str) -> dict[str, RangeIntervals]:
    """The work and the stream interval of each range.

    Launches are matched to ranges by thread and time, and to the work by the profiler's correlation number, which is
    also that of everything a replayed CUDA graph does. The profiler gives host and device times on one time base.

    Args:
        events: of the trace.
        prefix: of the ranges' names, which are unique.

    Returns:
        Intervals by name without the prefix; ranges that launched nothing are absent.
    """
    timeline = _Timeline.read(events, prefix)
    queues = _Queues(timeline)
    found: dict[str, RangeIntervals] = {}
    for thread, own in timeline.ranges.items():
        launches = sorted(timeline.launches.get(thread, ()))
        times = [time for time, _ in launches]
        for name, opened, closed in own:
            inside = launches[bisect_left(times, opened) : bisect_right(times, closed)]
            launched = [timeline.work[correlation] for _, correlation in inside if correlation in timeline.work]
            if not launched:
                continue
            pieces = list(chain.from_iterable(launched))
            work = min(piece.start for piece in pieces), max(piece.end for piece in pieces)
            streams = {piece.stream for piece in launched[0]}
            end = max(queues.reached(streams, closed), work[1])
            found[name] = RangeIntervals(work, (queues.reached(streams, opened), end))
    return found


def synchronisations(events: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How often the host waited for the device, by call."""
    counted = Counter(event["name"] for event in events if event.get("cat") in LAUNCHES)
    return {name: counted[name] for name in SYNCHRONISATIONS}


@dataclass(frozen=True, slots=True)
class _Piece:
    """A kernel, a copy or a fill."""

    stream: Stream
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class _Timeline:
    """Name and interval of each range and time and correlation of each launch, by thread; work by correlation."""

    ranges: dict[Any, list[tuple[str, float, float]]] = field(default_factory=lambda: defaultdict(list))
    launches: dict[Any, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))
    work: dict[int, list[_Piece]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def read(cls, events: Iterable[Mapping[str, Any]], prefix: str) -> _Timeline:
        timeline = cls()
        for event in events:
            if event.get("ph") != "X":
                continue
            kind, start, details = event.get("cat"), event["ts"] / 1e6, event.get("args", {})
            end = start + event.get("dur", 0) / 1e6
            if kind == "user_annotation" and event["name"].startswith(prefix):
                timeline.ranges[event["tid"]].append((event["name"].removeprefix(prefix), start, end))
            elif kind in LAUNCHES and "correlation" in details:
                timeline.launches[event["tid"]].append((start, details["correlation"]))
            elif kind in WORK and "correlation" in details:
                stream = details["device"], details["stream"]
                timeline.work[details["correlation"]].append(_Piece(stream, start, end))
        return timeline


class _Queues:
    """What was launched on each stream, by any thread."""

    def __init__(self, timeline: _Timeline) -> None:
        queued: dict[Stream, list[tuple[float, float]]] = defaultdict(list)
        for time, correlation in chain.from_iterable(timeline.launches.values()):
            for piece in timeline.work.get(correlation, ()):
                queued[piece.stream].append((time, piece.end))
        self._launched: dict[Stream, list[float]] = {}
        self._done: dict[Stream, list[float]] = {}
        for stream, pieces in queued.items():
            pieces.sort()
            self._launched[stream] = [time for time, _ in pieces]
            self._done[stream] = list(accumulate((end for _, end in pieces), max))

    def reached(self, streams: Iterable[Stream], moment: float) -> float:
        """When all of some streams would reach an event that the host recorded at a moment."""
        reached = moment
        for stream in streams:
            if before := bisect_left(self._launched[stream], moment):
                reached = max(reached, self._done[stream][before - 1])
        return reached
