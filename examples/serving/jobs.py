"""A requested song: its state, its progress and its subscribers."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from acestep import GenerationRequest
from acestep_otel import Waiting

State = Literal["waiting", "running", "done", "failed", "cancelled"]
FINAL: frozenset[State] = frozenset({"done", "failed", "cancelled"})


class Events:
    """A log that one thread writes and any number of coroutines follow."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: list[dict[str, Any]] = []
        self._changed = asyncio.Event()

    def publish(self, event: dict[str, Any]) -> None:
        """Append an event; from any thread."""
        self._events.append(event)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    async def follow(self) -> AsyncIterator[dict[str, Any]]:
        """Every event from the first on, until the one with a final state."""
        position = 0
        while True:
            changed = self._changed
            while position < len(self._events):
                event = self._events[position]
                position += 1
                yield event
                if event["state"] in FINAL:
                    return
            await changed.wait()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


@dataclass(eq=False)
class Job:
    """One request.

    Attributes:
        request: what to generate.
        waiting: its wait in the queue, and the context of its caller.
        events: what subscribers receive.
        id: random; not in any metric.
        state: its current state.
        cancelled: whether it was requested to stop.
        files: the songs, once they are generated.
        error: class of the error that ended it.
        worker: card that generates or generated it; ``None`` for the only device.
        attempts: how often it was started.
    """

    request: GenerationRequest
    waiting: Waiting
    events: Events
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    state: State = "waiting"
    cancelled: bool = False
    files: tuple[Path, ...] = ()
    error: str | None = None
    worker: str | None = None
    attempts: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def begin(self, worker: str | None) -> None:
        """A worker has begun; ends the wait.

        Args:
            worker: card that generates it; ``None`` for the only device.
        """
        self.worker = worker
        self.waiting.leave()
        self.move_to("running", **({} if worker is None else {"worker": worker}))

    def move_to(self, state: State, **details: Any) -> None:
        """Change the state and notify subscribers; a final state is never changed."""
        with self._lock:
            if self.state not in FINAL:
                self.state = state
                self.events.publish({"state": state, **details})
