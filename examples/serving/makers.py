"""Where songs are generated: in this process, or a process on each card (``card_process.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from prometheus_client.metrics_core import Metric

from acestep import Models, ProgressCallback, generate_music
from examples.serving.jobs import Job


class WorkerDied(Exception):
    """The process that generated a song ended before the song was complete."""


class Maker(Protocol):
    """Generates one song at a time; used by one thread."""

    @property
    def label(self) -> str | None:
        """Its card; ``None`` for the only device."""

    def start(self) -> None:
        """Get ready for the next song; returns immediately if it is ready.

        Raises:
            WorkerDied: it could not be started.
        """

    def assign(self, job: Job, folder: Path) -> None:
        """Submit the next job, in its context, and return immediately; ``make`` follows with the same arguments.

        A maker whose work is done elsewhere begins with it; the service meanwhile completes the previous job.
        """

    def make(self, job: Job, folder: Path, report: ProgressCallback) -> Sequence[Path]:
        """Generate the songs of the assigned job, in the current context.

        Args:
            job: what to generate; its ``begin`` is called when work on it begins, here or in ``assign``.
            folder: where the files go.
            report: called with the progress; raises ``Cancelled`` to stop.

        Raises:
            Cancelled: the job was cancelled.
            SongFailed: the song could not be generated.
            WorkerDied: the process ended.
        """

    def cancel(self) -> None:
        """Stop the current job if it still waits for a process, so that no step would notice the cancellation."""

    def metrics(self) -> Sequence[Metric]:
        """Metrics of its process; none for this process, whose registry has them."""

    def close(self) -> None:
        """End, and deliver its telemetry."""


class OwnMaker:
    """Generates songs in this process (``Maker``)."""

    label: str | None = None

    def __init__(self, models: Models) -> None:
        """Generate songs with loaded models."""
        self._models = models

    def start(self) -> None:
        """It is always ready."""

    def assign(self, job: Job, folder: Path) -> None:
        """Nothing: the thread that submits it generates it."""

    def make(self, job: Job, folder: Path, report: ProgressCallback) -> Sequence[Path]:
        """Generate the songs of a job."""
        job.begin(None)
        result = generate_music(self._models, job.request, save_dir=folder, progress=report)
        return [song.path for song in result.songs if song.path is not None]

    def cancel(self) -> None:
        """Every step notices."""

    def metrics(self) -> Sequence[Metric]:
        """None: they are in this process's registry."""
        return ()

    def close(self) -> None:
        """Nothing to end."""
