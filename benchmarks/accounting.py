"""Time of the calling thread in the tracing layer, which a comparison of songs cannot resolve."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import wrapt

from acestep_otel.recording.clock import CudaEventClock, HostClock
from acestep_otel.recording.request_tracer import RequestTracer
from acestep_otel.recording.vram import VramTracker

LAYER: Final = (
    *((RequestTracer, name) for name in ("_start", "_finish", "_begin", "_end", "_describe")),
    (HostClock, "mark"),
    (CudaEventClock, "mark"),
    (VramTracker, "begin"),
    (VramTracker, "read"),
)
"""Everything that the layer does on the calling thread, but for the wrappers themselves (half a microsecond a call)."""


@contextmanager
def accounted() -> Iterator[Mapping[str, float]]:
    """Add up the processor seconds that the calling thread spends in each of the layer's functions.

    The time of a function excludes the others that it calls, so each moment is counted once.
    """
    spent: dict[str, float] = defaultdict(float)
    inner_seconds = [0.0]

    def timed(name: str) -> Any:
        def measure(wrapped: Any, _instance: Any, args: Any, kwargs: Any) -> Any:
            inner_seconds.append(0.0)
            start = time.thread_time()
            try:
                return wrapped(*args, **kwargs)
            finally:
                seconds = time.thread_time() - start
                spent[name] += seconds - inner_seconds.pop()
                inner_seconds[-1] += seconds

        return measure

    originals = {(owner, name): vars(owner)[name] for owner, name in LAYER}
    for (owner, name), original in originals.items():
        setattr(owner, name, wrapt.FunctionWrapper(original, timed(f"{owner.__name__}.{name}")))
    try:
        yield spent
    finally:
        for (owner, name), original in originals.items():
            setattr(owner, name, original)
