"""Attributes that a caller puts on every span of the requests it makes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

from acestep_otel import semconv
from acestep_otel.recording.call import Attributes

_annotations: ContextVar[Attributes | None] = ContextVar("acestep_otel_annotations", default=None)


@contextmanager
def annotated(attributes: Attributes) -> Iterator[None]:
    """Put attributes on every span of the requests made inside the block; blocks add up."""
    token = _annotations.set({**current_annotations(), **attributes})
    try:
        yield
    finally:
        _annotations.reset(token)


def warmup() -> AbstractContextManager[None]:
    """Mark the spans of requests made inside the block with ``acestep.warmup``."""
    return annotated({semconv.WARMUP: True})


def is_measured(attributes: Attributes) -> bool:
    """Whether requests with these attributes count in metrics.

    A warm-up's share of a sum or a histogram could never be taken out again.
    """
    return not attributes.get(semconv.WARMUP)


def current_annotations() -> Attributes:
    """What the blocks around this moment have put there."""
    return _annotations.get() or {}
