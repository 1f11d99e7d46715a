"""A background thread that emits the telemetry of requests that have ended.

Reading a device's events and building spans and metrics takes a millisecond or two, which the caller need not wait
for; and inference that returns its audio on the device returns before the device is done. A forked child inherits
memory but no threads, so it starts with a queue of its own.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

logger = logging.getLogger("acestep_otel")

_POLL_SECONDS: Final = 0.002
_PATIENCE_SECONDS: Final = 60.0
"""Seconds after the return at which a device counts as hung; times are then the host's."""
_IDLE_SECONDS: Final = 10.0
"""Seconds without work after which the thread ends: a new thread takes longer to start than a waiting one to wake."""
_CAPACITY: Final = 256
"""Most waiting actions: a span processor that blocks must cost traces, not memory."""
_FORK_SECONDS: Final = 1.0
"""Seconds that a fork waits at most for the running action."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    ready: Callable[[], bool]
    action: Callable[[], None]
    deadline: float


class Deferral:
    """A queue of actions, in order, each run when it is ready. Its thread ends when there were none for a while."""

    def __init__(self) -> None:
        # Reentrant: a signal handler may call ``drain`` in the middle of ``add``.
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting] = deque()
        self._at_work = False
        self._thread: threading.Thread | None = None
        # Held while an action or a fork runs; a fork may come from within an action.
        self._acting = threading.RLock()

    def add(self, ready: Callable[[], bool], action: Callable[[], None]) -> bool:
        """Run an action as soon as ``ready`` says so.

        Args:
            ready: called at once, then every two milliseconds for a minute at most.
            action: what to do then.

        Returns:
            Whether there was room for it.
        """
        now = time.monotonic()
        with self._changed:
            if len(self._waiting) >= _CAPACITY:
                return False
            if self._thread is not None or self._start():
                self._waiting.append(_Waiting(ready, action, now + _PATIENCE_SECONDS))
                self._changed.notify_all()
                return True
        self._run(_Waiting(ready, action, deadline=now))
        return True

    def drain(self, timeout: float) -> int:
        """Wait until everything was run, but no longer than ``timeout`` seconds.

        Returns:
            How many actions are left.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._at_work, timeout)
            return len(self._waiting) + self._at_work

    def pause(self) -> None:
        """Begin no action until ``resume``, and let the one that is running end; called before a fork.

        The child would inherit the locks that an action holds in the SDK, which no thread of the child releases.
        """
        self._acting.acquire(timeout=_FORK_SECONDS)

    def resume(self) -> None:
        """Go on; called in the parent by the thread that has forked."""
        # Not held if the action took too long for the fork to wait for it.
        with suppress(RuntimeError):
            self._acting.release()

    def _start(self) -> bool:
        """Returns whether there is a thread now."""
        thread = threading.Thread(target=self._work, name="acestep-otel-deferral", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # No more threads from the system or from the interpreter: exit handlers of Python 3.12.0 to 3.12.2.
            return False
        self._thread = thread
        return True

    def _work(self) -> None:
        while self._run_next():
            pass

    def _run_next(self) -> bool:
        """Run one action; returns whether there was one. None is kept: it may hold tensors of a failed request."""
        if (waiting := self._next()) is None:
            return False
        self._run(waiting)
        return True

    def _run(self, waiting: _Waiting) -> None:
        try:
            while not waiting.ready() and time.monotonic() < waiting.deadline:
                time.sleep(_POLL_SECONDS)
            with self._acting:
                waiting.action()
        except Exception:
            # A device that has failed raises here too; that must not affect the next request's telemetry.
            logger.debug("deferred telemetry failed", exc_info=True)

    def _next(self) -> _Waiting | None:
        """The next action, or ``None`` to end the thread; the previous one is finished."""
        with self._changed:
            self._at_work = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting, _IDLE_SECONDS)
            if not self._waiting:
                self._thread = None
                return None
            self._at_work = True
            return self._waiting.popleft()


def follow_forks(before: Callable[[], None], in_parent: Callable[[], None], in_child: Callable[[], None]) -> None:
    """Call methods around every fork of this process, for as long as their object exists.

    The hooks cannot be taken off again, so they do not keep the object alive.

    Args:
        before: called by the thread that forks, first.
        in_parent: called by the same thread after it.
        in_child: called in the child.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=_while_alive(before), after_in_parent=_while_alive(in_parent), after_in_child=_while_alive(in_child)
        )


def _while_alive(method: Callable[[], None]) -> Callable[[], None]:
    reference = weakref.WeakMethod(method)

    def call() -> None:
        if (alive := reference()) is not None:
            alive()

    return call
