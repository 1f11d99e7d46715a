"""What has to wait for the device waits on a thread of its own, never in the request.

Inference that hands its audio back on the device returns before the device is done. Its events are read when they
are there; the request and its caller go on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

logger = logging.getLogger("acestep_otel")

_POLL_SECONDS: Final = 0.002
_PATIENCE_SECONDS: Final = 60.0
"""A device that needs longer than that after the return has hung; times are then the host's."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    ready: Callable[[], bool]
    action: Callable[[], None]
    deadline: float


class Deferral:
    """A queue of actions, in order, each run when it is ready. Without any there is no thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[_Waiting] = deque()
        self._thread: threading.Thread | None = None

    def add(self, ready: Callable[[], bool], action: Callable[[], None]) -> None:
        """Run an action as soon as ``ready`` says so.

        Args:
            ready: asked every two milliseconds, for a minute at most.
            action: what to do then.
        """
        with self._lock:
            self._waiting.append(_Waiting(ready, action, time.monotonic() + _PATIENCE_SECONDS))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="acestep-otel-deferral", daemon=True)
                self._thread.start()

    def drain(self, timeout: float) -> None:
        """Wait until everything was run, but no longer than ``timeout`` seconds."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(timeout)

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                waiting = self._waiting.popleft()
            try:
                while not waiting.ready() and time.monotonic() < waiting.deadline:
                    time.sleep(_POLL_SECONDS)
                waiting.action()
            except Exception:
                # A device that fails also fails to answer; the next request's telemetry must not suffer from it.
                logger.debug("deferred telemetry failed", exc_info=True)
