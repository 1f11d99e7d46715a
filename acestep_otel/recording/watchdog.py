"""A snapshot of a request that is past its deadline, made while it hangs.

A span of its own is emitted at once, as a child of the request's: the request's span would only arrive when it ends. It
contains the stage and step that the request is in and their start, whether the device is still processing enqueued
work, and the Python stack. A log record has the same content. Nothing is synchronised or allocated on the device.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from acestep_otel import semconv
from acestep_otel.recording.trace_tree import Attributes, AttributeValue, RequestRecording, Unrecorded

logger = logging.getLogger("acestep_otel")

_SNAPSHOTS: Final = 3
"""Most snapshots of one request: at its deadline, and each time that twice as long has passed."""
_FRAMES: Final = 40
"""Innermost frames of a stack that are kept."""


@dataclass(slots=True)
class _Watched:
    recording: RequestRecording | Unrecorded
    thread: int
    begun: float
    due: float
    report: Callable[[Attributes], None]
    taken: int = 0


class Watchdog:
    """Watches requests from a thread of its own, which sleeps until the next deadline.

    Args:
        deadline: seconds; 0 watches nothing.
    """

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._condition = threading.Condition()
        self._watched: dict[int, _Watched] = {}
        self._thread: threading.Thread | None = None

    def begin(self, key: int, recording: RequestRecording | Unrecorded, report: Callable[[Attributes], None]) -> None:
        """Watch a request that this thread runs.

        Args:
            key: key that ``end`` is called with.
            recording: of the request.
            report: called with the attributes of a snapshot.
        """
        if self._deadline <= 0:
            return
        now = time.monotonic()
        watched = _Watched(recording, threading.get_ident(), now, now + self._deadline, report)
        with self._condition:
            self._watched[key] = watched
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="acestep-otel-watchdog", daemon=True)
                self._thread.start()

    def end(self, key: int) -> None:
        """Stop watching a request."""
        self._watched.pop(key, None)

    def _run(self) -> None:
        while True:
            with self._condition:
                due = min((watched.due for watched in list(self._watched.values())), default=float("inf"))
                # One deadline at most: a request that begins in the meantime is not due earlier, and need not notify.
                self._condition.wait(min(self._deadline, max(0.0, due - time.monotonic())))
                now = time.monotonic()
                late = [watched for watched in list(self._watched.values()) if watched.due <= now]
            for watched in late:
                self._look_at(watched, now)

    def _look_at(self, watched: _Watched, now: float) -> None:
        watched.taken += 1
        watched.due = now + 2 * (now - watched.begun) if watched.taken < _SNAPSHOTS else float("inf")
        try:
            attributes = snapshot(watched.recording, watched.thread, now - watched.begun)
            logger.warning(
                "a request has been running for %.0f s, in %s:\n%s",
                now - watched.begun,
                attributes[semconv.HANG_STAGE],
                attributes[semconv.HANG_STACK],
            )
            watched.report(attributes)
        except Exception:
            logger.debug("no snapshot of a request past its deadline", exc_info=True)


def snapshot(recording: RequestRecording | Unrecorded, thread: int, seconds: float) -> dict[str, AttributeValue]:
    """The state of a request, read from another thread.

    Args:
        recording: of the request; one that was sampled out has no stages.
        thread: thread that runs it.
        seconds: since its start.
    """
    found: dict[str, AttributeValue] = {
        semconv.HANG_SECONDS: seconds,
        semconv.HANG_STAGE: "unknown",
        semconv.HANG_STACK: stack_of(thread),
    }
    if isinstance(recording, RequestRecording):
        stages = recording.open_stages
        if stages:
            innermost = stages[-1]
            found[semconv.HANG_STAGE] = semconv.stage_of(innermost.name)
            found[semconv.HANG_STAGE_SECONDS] = (time.perf_counter_ns() - innermost.start.host_ns) / 1e9
            done = [child for child in innermost.children if child.end is not None]
            found[semconv.HANG_FINISHED] = len(done)
            for name in (semconv.DIT_STEP_INDEX, semconv.VAE_TILE_INDEX):
                if name in innermost.attributes:
                    found[name] = innermost.attributes[name]
        # Either the host waits for a device that is still working, or the host itself is stuck.
        found[semconv.HANG_DEVICE_BUSY] = not recording.reached
    return found


def stack_of(thread: int) -> str:
    """The stack of a thread: file, line and function of its innermost frames, without values.

    Only the last three parts of a path are kept, because those before them may identify the user.
    """
    frame: Any = sys._current_frames().get(thread)
    if frame is None:
        return "the thread has ended"
    frames = traceback.extract_stack(frame)[-_FRAMES:]
    return "\n".join(f"{'/'.join(Path(entry.filename).parts[-3:])}:{entry.lineno} {entry.name}" for entry in frames)
