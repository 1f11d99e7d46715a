"""One worker with a bounded queue: one thread uses the engine, and a full queue rejects at once."""

from __future__ import annotations

import logging
import shutil
import threading
from collections import OrderedDict, deque
from pathlib import Path

from acestep import AceStepError, Cancelled, Models, Progress, generate_music
from acestep_otel import CANCELLED, QueueTelemetry
from examples.serving.jobs import FINAL, Job

logger = logging.getLogger("examples.serving")


class QueueFull(Exception):
    """There is no room for another request."""


class Closed(Exception):
    """The service is shutting down."""


class Worker:
    """Makes songs one after the other, in a thread of its own."""

    def __init__(self, models: Models, folder: Path, *, queue: QueueTelemetry, capacity: int, kept: int) -> None:
        """Start the thread.

        Args:
            models: loaded models.
            folder: songs are written below it.
            queue: records accepted, finished and rejected requests.
            capacity: requests that may wait at most.
            kept: finished songs that stay on disk; the oldest go first.
        """
        self._models = models
        self._folder = folder
        self._queue = queue
        self._capacity = capacity
        self._kept = kept
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._running: Job | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="worker", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread still takes jobs."""
        return self._thread.is_alive() and not self._closed

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._waiting)

    def require_room(self) -> None:
        """Refuse before any work is done for a request.

        Raises:
            QueueFull: as many as may wait do so already.
            Closed: the service is shutting down.
        """
        if self._closed:
            raise Closed
        if len(self._waiting) >= self._capacity:
            self._queue.reject()
            raise QueueFull

    def submit(self, job: Job) -> None:
        """Put a job at the end of the queue.

        Raises:
            QueueFull: others were faster.
        """
        with self._changed:
            if self._closed or len(self._waiting) >= self._capacity:
                job.waiting.leave("QueueFull")
                self._queue.reject()
                raise QueueFull
            self._waiting.append(job)
            self._jobs[job.id] = job
            job.move_to("waiting", ahead=len(self._waiting) - 1)
            self._changed.notify()

    def find(self, job_id: str) -> Job | None:
        """A job that is known still."""
        return self._jobs.get(job_id)

    def cancel(self, job: Job) -> None:
        """Stop a job: at once when it waits, between two steps when it runs."""
        with self._changed:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)
                job.waiting.leave(CANCELLED)
                self._finish(job, "cancelled")

    def stop(self) -> None:
        """Accept no more jobs and cancel all; subscribers are notified immediately."""
        with self._changed:
            self._closed = True
            self._changed.notify()
            running = self._running
        for job in [*self._waiting, *([] if running is None else [running])]:
            self.cancel(job)
        if running is not None:
            running.move_to("cancelled")

    def join(self, timeout: float) -> None:
        """Wait for the thread, seconds at most."""
        self._thread.join(timeout)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            # The caller's context, carried through the queue: its trace, its baggage, its sampling decision.
            job.waiting.context.run(self._make, job)
            self._running = None

    def _next(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return None
            self._running = job = self._waiting.popleft()
            job.waiting.leave()
            return job

    def _make(self, job: Job) -> None:
        def report(progress: Progress) -> None:
            if job.cancelled:
                raise Cancelled
            job.events.publish(
                {"state": "running", "stage": progress.stage, "done": progress.done, "total": progress.total}
            )

        job.move_to("running")
        try:
            # One that is cancelled from here on ends inside: a wait that ended with a worker has a song in its trace.
            result = generate_music(self._models, job.request, save_dir=self._folder / job.id, progress=report)
        except Cancelled:
            self._finish(job, "cancelled")
        except Exception as error:
            # A song that fails is not the end of the service. The message may quote the request, so it is not logged.
            logger.warning("job %s failed: %s", job.id, type(error).__name__)
            stage = error.stage if isinstance(error, AceStepError) else None
            job.error = type(error).__name__
            self._finish(job, "failed", error=job.error, stage=stage)
        else:
            job.files = tuple(song.path for song in result.songs if song.path is not None)
            self._finish(job, "done", songs=len(job.files))

    def _finish(self, job: Job, state: str, **details: object) -> None:
        with self._changed:
            finished = [other for other in self._jobs.values() if other.state in FINAL]
            # Room for this one as well, whose subscribers are notified last, when the others are gone.
            for old in finished[: max(0, len(finished) + 1 - self._kept)]:
                del self._jobs[old.id]
                shutil.rmtree(self._folder / old.id, ignore_errors=True)
        job.move_to(state, **details)  # type: ignore[arg-type]
