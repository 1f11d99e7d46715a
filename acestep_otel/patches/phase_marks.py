"""Wrappers that mark passes and time the grammar inside a phase of a language model; outside of one they do nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from acestep_otel.recording.clock import Mark
from acestep_otel.recording.trace_tree import RequestRecording, never_raises, running_phase


@never_raises
def mark_now(recording: RequestRecording) -> Mark:
    """The moment of the request's clock; ``None`` when the clock failed."""
    return recording.clock.mark()


def prompt_pass(wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A forward over the prompts."""
    running = running_phase()
    if running is None:
        return wrapped(*args, **kwargs)
    recording, phase = running
    start = mark_now(recording)
    result = wrapped(*args, **kwargs)
    end = mark_now(recording)
    if start is not None and end is not None:
        phase.prefills.append((start, end))
    return result


def decode_pass(wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A pass that yields one token of each song."""
    running = running_phase()
    result = wrapped(*args, **kwargs)
    if running is not None:
        recording, phase = running
        if (mark := mark_now(recording)) is not None:
            phase.passes.append(mark)
    return result


def grammar(wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call of the grammar, timed on the host."""
    running = running_phase()
    if running is None:
        return wrapped(*args, **kwargs)
    start_ns = time.perf_counter_ns()
    result = wrapped(*args, **kwargs)
    phase = running[1]
    phase.constrained_ns = (phase.constrained_ns or 0) + time.perf_counter_ns() - start_ns
    # A call that returns rows of the head precedes a draw; a move of the cursor returns tokens instead.
    if (rows := getattr(result, "weights", None)) is not None:
        phase.choices += 1
        phase.candidates += rows.shape[0]
    return result
