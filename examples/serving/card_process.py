"""The service's side of a process on a card: assigns and cancels songs, and handles its failure."""

from __future__ import annotations

import argparse
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import Final
from urllib.parse import quote

from prometheus_client.metrics_core import Metric

from acestep import Cancelled, Card, Progress, ProgressCallback
from examples.serving.jobs import Job
from examples.serving.makers import WorkerDied
from examples.serving.messages import (
    Cancel,
    Count,
    Counted,
    Failed,
    FromCard,
    FromService,
    Made,
    Ready,
    Refused,
    Song,
    Start,
    Stop,
)

logger = logging.getLogger("examples.serving")

_MODULE: Final = "examples.serving.card_worker"
_EXIT_SECONDS: Final = 10.0
"""Seconds for the step in progress, and the delivery of telemetry."""
_COUNT_SECONDS: Final = 2.0
_ATTRIBUTES: Final = "OTEL_RESOURCE_ATTRIBUTES"


class Unusable(Exception):
    """No process can be started on the card, for a reason that another try does not change."""


class SongFailed(Exception):
    """The process could not generate the song.

    Attributes:
        error: class name of its exception.
        stage: of the engine, if known.
    """

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.error)
        self.error = failed.error
        self.stage = failed.stage


class CardMaker:
    """Generates songs in a process on a card (``examples.serving.makers.Maker``)."""

    def __init__(self, card: Card, options: argparse.Namespace, cards: int) -> None:
        """Start nothing yet.

        Args:
            card: the only one that is visible to the process.
            options: options of the command line.
            cards: number of processes that run at the same time.
        """
        self._card = card
        self._options = argparse.Namespace(**{**vars(options), "device": card.device})
        self._cards = cards
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def label(self) -> str:
        """The card."""
        return self._card.label

    @property
    def process_id(self) -> int | None:
        """Of the process that runs now."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start a process, if none runs, and wait until it has loaded its models.

        Raises:
            WorkerDied: it ended before.
            Unusable: it cannot load them.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self._end()
        self._connection, theirs = Pipe()
        self._messages: queue.SimpleQueue[FromCard | None] = queue.SimpleQueue()
        self._counts: queue.SimpleQueue[Counted | None] = queue.SimpleQueue()
        self._sending = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _MODULE, str(theirs.fileno())],
                env=worker_environment(os.environ, self._card, self._cards),
                pass_fds=[theirs.fileno()],
                # Ctrl-C on the terminal is for the service.
                start_new_session=True,
            )
        threading.Thread(target=self._listen, daemon=True).start()
        self._send(Start(self._options, self._card))
        match self._next():
            case Refused(message):
                raise Unusable(f"{self.label}: {message}")
            case Ready():
                return
            case unexpected:
                raise AssertionError(unexpected)

    def assign(self, job: Job, folder: Path) -> None:
        """Send a job to the process, which begins immediately."""
        # Imported once the variables have been checked: propagators read theirs while they are imported.
        from opentelemetry import propagate

        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        # First of all: the card is idle until the message arrives.
        self._send(Song(job.id, job.request, carrier, folder))
        job.begin(self.label)

    def make(self, job: Job, folder: Path, report: ProgressCallback) -> Sequence[Path]:  # noqa: ARG002
        """Wait until the songs of the assigned job are generated.

        Raises:
            Cancelled: the job was cancelled.
            SongFailed: the process could not generate them.
            WorkerDied: the process ended.
        """
        while True:
            match self._next():
                case Progress() as progress:
                    try:
                        report(progress)
                    except Cancelled:
                        self._send(Cancel(job.id))
                case Made(files):
                    return files
                case Failed(error="Cancelled"):
                    raise Cancelled
                case Failed() as failed:
                    raise SongFailed(failed)
                case unexpected:
                    raise AssertionError(unexpected)

    def cancel(self) -> None:
        """Every step notices."""

    def metrics(self) -> Sequence[Metric]:
        """Metrics of the process; none while it does not respond."""
        if self._process is None or self._process.poll() is not None:
            return ()
        with suppress(queue.Empty):
            # Answers that came too late.
            while True:
                self._counts.get_nowait()
        self._send(Count())
        with suppress(queue.Empty):
            counted = self._counts.get(timeout=_COUNT_SECONDS)
            return () if counted is None else counted.families
        return ()

    def close(self) -> None:
        """Let the process deliver its telemetry and end; it is killed if it does not within some seconds."""
        if self._process is not None:
            self._send(Stop())
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_EXIT_SECONDS)
        self._end()

    def _next(self) -> FromCard:
        message = self._messages.get()
        if message is None:
            assert self._process is not None
            code = self._process.wait()
            said = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise WorkerDied(f"the process on {self.label} {said}")
        return message

    def _send(self, message: FromService) -> None:
        # A dead process is detected by its end of the pipe.
        with self._sending, suppress(OSError):
            self._connection.send(message)

    def _listen(self) -> None:
        connection, messages, counts = self._connection, self._messages, self._counts
        with suppress(EOFError, OSError):
            while True:
                message = connection.recv()
                (counts if isinstance(message, Counted) else messages).put(message)
        messages.put(None)
        counts.put(None)

    def _end(self) -> None:
        if self._process is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        self._connection.close()


def worker_environment(inherited: Mapping[str, str], card: Card, cards: int) -> dict[str, str]:
    """The environment of a card's process: only its card is visible to it, and its telemetry names the card.

    Args:
        inherited: the service's own.
        card: the only one that is visible to it.
        cards: number of processes that run at the same time.
    """
    resource = {"acestep.worker": card.label, "host.name": card.host}
    if card.uuid is not None:
        resource |= {"hw.id": card.uuid, "hw.model": card.model}
    pairs = [f"{name}={quote(value)}" for name, value in resource.items()]
    given = [inherited[_ATTRIBUTES]] if inherited.get(_ATTRIBUTES, "").strip() else []
    return {**card.environment(inherited, cards=cards), _ATTRIBUTES: ",".join([*pairs, *given])}
