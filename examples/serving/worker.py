"""Workers behind one bounded queue: a thread for each maker, and a full queue rejects at once.

A worker whose process dies is started again. Its song is retried elsewhere, once: it does not wait in the queue again,
but is the next that a worker takes.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Final

from acestep import AceStepError, Cancelled, Progress
from acestep_otel import CANCELLED, QueueTelemetry
from examples.serving.card_process import SongFailed
from examples.serving.jobs import FINAL, Job, State
from examples.serving.makers import Maker, WorkerDied

logger = logging.getLogger("examples.serving")

ATTEMPTS: Final = 2
"""Maximum number of attempts for a song whose workers die."""
RESTART_SECONDS: Final = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds between two attempts to start a worker."""


class QueueFull(Exception):
    """There is no room for another request."""


class Closed(Exception):
    """The service is shutting down."""


class Workers:
    """Threads that take songs from one queue, each with its own maker."""

    def __init__(
        self, makers: Sequence[Maker], folder: Path, *, queue: QueueTelemetry, capacity: int, kept: int
    ) -> None:
        """Start a thread for each maker.

        Args:
            makers: generate the songs; each is ready.
            folder: songs are written below it.
            queue: records accepted, finished and rejected requests.
            capacity: maximum number of waiting requests.
            kept: maximum number of finished songs on disk; the oldest are deleted first.
        """
        self._makers = makers
        self._folder = folder
        self._queue = queue
        self._capacity = capacity
        self._kept = kept
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._running: dict[Maker, Job] = {}
        self._ready = set(makers)
        self._draining = False
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, args=(maker,), name="worker", daemon=True) for maker in makers
        ]
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether one takes jobs."""
        return not self._closed and any(thread.is_alive() for thread in self._threads) and self.ready > 0

    @property
    def ready(self) -> int:
        """Workers that generate songs, or could generate one now."""
        return len(self._ready)

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._waiting)

    def require_room(self) -> None:
        """Reject before any work is done for a request.

        Raises:
            QueueFull: the maximum number of requests is waiting.
            Closed: the service is shutting down.
        """
        if self._closed or self._draining:
            raise Closed
        if len(self._waiting) >= self._capacity:
            self._queue.reject()
            raise QueueFull

    def submit(self, job: Job) -> None:
        """Put a job at the end of the queue.

        Raises:
            QueueFull: the queue has filled up meanwhile.
        """
        with self._changed:
            if self._closed or self._draining or len(self._waiting) >= self._capacity:
                job.waiting.leave("QueueFull")
                self._queue.reject()
                raise QueueFull
            self._waiting.append(job)
            self._jobs[job.id] = job
            job.move_to("waiting", ahead=len(self._waiting) - 1)
            self._changed.notify_all()

    def find(self, job_id: str) -> Job | None:
        """A job that is still known."""
        return self._jobs.get(job_id)

    def cancel(self, job: Job) -> None:
        """Stop a job: immediately if it waits, between two steps if it runs."""
        with self._changed:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)
                job.waiting.leave(CANCELLED)
                self._finish(job, "cancelled")
            maker = next((maker for maker, running in self._running.items() if running is job), None)
        if maker is not None:
            maker.cancel()

    def drain(self, seconds: float) -> None:
        """Accept no more jobs, and wait until the accepted ones are done."""
        with self._changed:
            self._draining = True
            self._changed.wait_for(lambda: not self._waiting and not self._running, seconds)

    def stop(self) -> None:
        """Accept no more jobs and cancel all; subscribers are notified immediately."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            running = list(self._running.values())
        for job in [*self._waiting, *running]:
            self.cancel(job)
        for job in running:
            job.move_to("cancelled")

    def join(self, timeout: float) -> None:
        """Wait for the threads, and for their makers to end; seconds at most for all."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self, maker: Maker) -> None:
        while self._start(maker) and (taken := self._next(maker)) is not None:
            self._assign(maker, taken)
            job: Job | None = taken
            while job is not None:
                # The caller's context, carried through the queue: its trace, its baggage, its sampling decision.
                finish = job.waiting.context.run(self._make, maker, job)
                # The card generates the next song while this one's files and subscribers are dealt with.
                following = self._following(maker)
                job.waiting.context.run(finish)
                if following is None:
                    with self._changed:
                        del self._running[maker]
                        self._changed.notify_all()
                job = following
        maker.close()

    def _start(self, maker: Maker) -> bool:
        """Get a maker ready, with as many attempts as needed; returns whether it is still needed."""
        for seconds in chain(RESTART_SECONDS, repeat(RESTART_SECONDS[-1])):
            if self._closed:
                return False
            try:
                maker.start()
            except Exception as error:
                self._ready.discard(maker)
                logger.warning("%s, next try in %g s", error, seconds)
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, seconds)
            else:
                self._ready.add(maker)
                return True
        return False

    def _next(self, maker: Maker) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return self._take(maker)

    def _following(self, maker: Maker) -> Job | None:
        """The song that an intact maker goes on with immediately, if one waits."""
        if maker not in self._ready:
            return None
        with self._changed:
            job = self._take(maker)
        if job is not None:
            self._assign(maker, job)
        return job

    def _take(self, maker: Maker) -> Job | None:
        if not self._waiting:
            return None
        self._running[maker] = job = self._waiting.popleft()
        job.attempts += 1
        return job

    def _assign(self, maker: Maker, job: Job) -> None:
        job.waiting.context.run(maker.assign, job, self._folder / job.id)

    def _make(self, maker: Maker, job: Job) -> Callable[[], None]:
        """Generate a song; returns what is left to do once its maker has the next one."""

        def report(progress: Progress) -> None:
            if job.cancelled:
                raise Cancelled
            job.events.publish(
                {"state": "running", "stage": progress.stage, "done": progress.done, "total": progress.total}
            )

        try:
            # A job that is cancelled from here on ends inside the song: a wait that ended with a worker has a song in
            # its trace.
            job.files = tuple(maker.make(job, self._folder / job.id, report))
        except Cancelled:
            # One that no worker had begun waited until now.
            job.waiting.leave(CANCELLED)
            return partial(self._finish, job, "cancelled")
        except WorkerDied as error:
            self._ready.discard(maker)
            logger.warning("job %s: %s", job.id, error)
            return partial(self._try_again, job)
        except Exception as error:
            # A song that fails is not the end of the service. The message may quote the request, so it is not logged.
            job.error = error.error if isinstance(error, SongFailed) else type(error).__name__
            logger.warning("job %s failed: %s", job.id, job.error)
            stage = error.stage if isinstance(error, (AceStepError, SongFailed)) else None
            return partial(self._finish, job, "failed", error=job.error, stage=stage)
        return partial(self._finish, job, "done", songs=len(job.files))

    def _try_again(self, job: Job) -> None:
        """Put a job whose worker died before all others, once; the song itself may be the cause."""
        if job.cancelled or self._closed:
            self._finish(job, "cancelled")
        elif job.attempts >= ATTEMPTS:
            job.waiting.leave(WorkerDied.__name__)
            job.error = WorkerDied.__name__
            self._finish(job, "failed", error=job.error, stage=None)
        else:
            with self._changed:
                self._waiting.appendleft(job)
                job.move_to("waiting", ahead=0)
                self._changed.notify_all()

    def _finish(self, job: Job, state: State, **details: object) -> None:
        with self._changed:
            finished = [other for other in self._jobs.values() if other.state in FINAL]
            # Room for this one too, whose subscribers are notified last, when the others have ended.
            expired = finished[: max(0, len(finished) + 1 - self._kept)]
            for old in expired:
                del self._jobs[old.id]
        # Without the lock: other cards take songs meanwhile.
        for old in expired:
            shutil.rmtree(self._folder / old.id, ignore_errors=True)
        job.move_to(state, **details)
