"""The process of one card: models loaded once, one song after the other. Started by ``card_process.py``.

It exports its own telemetry: spans continue the caller's trace, and the resource of spans and metrics names the card.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from multiprocessing.connection import Connection

from opentelemetry import context, propagate
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider
from prometheus_client import REGISTRY

from acestep import AceStepError, Cancelled, Card, Progress, generate_music
from acestep_otel import ServiceTelemetry
from examples.serving.messages import Cancel, Count, Counted, Failed, FromCard, Made, Ready, Refused, Song, Start, Stop
from examples.serving.models import freeze_objects, load
from examples.serving.telemetry import set_up


class _Mark(SpanProcessor):
    """Adds attributes to every span."""

    def __init__(self, attributes: dict[str, str]) -> None:
        self._attributes = attributes

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002
        """Add them."""
        span.set_attributes(self._attributes)


def mark(telemetry: ServiceTelemetry, card: Card) -> None:
    """Add a card's attributes to every span of this process: not every backend can search resource attributes."""
    provider = telemetry.tracer_provider
    if isinstance(provider, TracerProvider):
        hardware = {} if card.uuid is None else {"hw.id": card.uuid, "hw.model": card.model}
        provider.add_span_processor(_Mark({"acestep.worker": card.label, "host.name": card.host, **hardware}))


class CardWorker:
    """Generates what is requested over the pipe."""

    def __init__(self, connection: Connection) -> None:
        """Listen."""
        self._connection = connection
        self._sending = threading.Lock()
        self._songs: queue.SimpleQueue[Song | None] = queue.SimpleQueue()
        self._cancelled: set[str] = set()
        self._stopping = False

    def run(self, telemetry: ServiceTelemetry, start: Start) -> None:
        """Load the models, and generate songs until the service sends ``Stop``, or has ended."""
        try:
            models = load(start.options)
        except AceStepError as error:
            self._send(Refused(str(error)))
            return
        freeze_objects()
        threading.Thread(target=self._listen, daemon=True).start()
        self._send(Ready())
        while (song := self._songs.get()) is not None:
            token = context.attach(propagate.extract(song.carrier))
            try:
                result = generate_music(
                    models, song.request, save_dir=song.folder, progress=lambda progress: self._report(song, progress)
                )
                self._send(Made([made.path for made in result.songs if made.path is not None]))
            except Exception as error:
                stage = error.stage if isinstance(error, AceStepError) else None
                self._send(Failed(type(error).__name__, stage))
            finally:
                context.detach(token)
        telemetry.close()

    def _report(self, song: Song, progress: Progress) -> None:
        if self._stopping or song.job_id in self._cancelled:
            raise Cancelled
        self._send(progress)

    def _listen(self) -> None:
        try:
            while True:
                match self._connection.recv():
                    case Song() as song:
                        self._songs.put(song)
                    case Cancel(job_id):
                        self._cancelled.add(job_id)
                    case Count():
                        self._send(Counted(list(REGISTRY.collect())))
                    case Stop():
                        break
        except (EOFError, OSError):
            # The service has ended: no caller can receive its songs.
            pass
        self._stopping = True
        self._songs.put(None)

    def _send(self, message: FromCard) -> None:
        with self._sending:
            try:
                self._connection.send(message)
            except OSError:
                self._stopping = True


def main() -> None:
    """Serve the pipe whose number is the argument."""
    # The service handles Ctrl-C and SIGTERM, and sends messages.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(int(sys.argv[1]))
    start = connection.recv()
    telemetry = set_up()
    mark(telemetry, start.card)
    try:
        CardWorker(connection).run(telemetry, start)
    finally:
        telemetry.close()
    sys.stdout.flush()
    # Threads of libraries must not keep a process alive whose work is done.
    os._exit(0)


if __name__ == "__main__":
    main()
