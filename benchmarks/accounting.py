"""What the calling thread does in the tracing layer: what a comparison of songs cannot resolve."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import wrapt

from acestep_otel.recording.clock import CudaEventClock, HostClock
from acestep_otel.recording.layer import TracingLayer

LAYER: Final = (
    *((TracingLayer, name) for name in ("_start", "_finish", "_begin", "_end", "_describe")),
    (HostClock, "mark"),
    (CudaEventClock, "mark"),
)
"""Everything that the layer does on the calling thread, but for the wrappers themselves (half a microsecond a call)."""


@contextmanager
def accounted() -> Iterator[Mapping[str, float]]:
    """Add up the processor seconds that the calling thread spends in the layer's functions, each moment once."""
    spent: dict[str, float] = defaultdict(float)
    depth = [0]

    def timed(wrapped: Any, _instance: Any, args: Any, kwargs: Any) -> Any:
        depth[0] += 1
        start = time.thread_time()
        try:
            return wrapped(*args, **kwargs)
        finally:
            depth[0] -= 1
            if depth[0] == 0:
                spent[wrapped.__name__] += time.thread_time() - start

    originals = {(owner, name): vars(owner)[name] for owner, name in LAYER}
    for (owner, name), original in originals.items():
        setattr(owner, name, wrapt.FunctionWrapper(original, timed))
    try:
        yield spent
    finally:
        for (owner, name), original in originals.items():
            setattr(owner, name, original)
