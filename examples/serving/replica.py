"""The replica of the service on Ray Serve: one card, models loaded once, one song at a time.

Ray Serve frees the slot of a cancelled request while its code still runs. The lock is what keeps two songs off one
card: it is held until the thread that generates the song has stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import tempfile
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import torch
from opentelemetry import context, propagate

from acestep import AceStepError, Cancelled, Card, GenerationRequest, Progress, generate_music
from acestep.cards import processor_name
from examples.serving.card_worker import mark
from examples.serving.messages import Failed, Files, Started
from examples.serving.models import load
from examples.serving.telemetry import set_up

FromReplica = Started | Progress | Files | Failed


class Replica:
    """One card of the cluster."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Load the models, on the GPU that Ray gave to this process."""
        from ray import serve

        self._card = card_of(options.device, serve.get_replica_context().replica_id.unique_id)
        self._telemetry = set_up()
        mark(self._telemetry, self._card)
        self._models = load(options)
        self._lock = asyncio.Lock()

    async def make(self, request: GenerationRequest, carrier: Mapping[str, str]) -> AsyncIterator[FromReplica]:
        """Generate the songs of a request: yields that it has begun, its progress, and its result.

        Args:
            request: what to generate.
            carrier: the caller's context: its trace, its baggage, its sampling decision.
        """
        async with self._lock:
            yield Started(self._card)
            loop, cancelled = asyncio.get_running_loop(), threading.Event()
            events: asyncio.Queue[FromReplica] = asyncio.Queue()

            def report(progress: Progress) -> None:
                if cancelled.is_set():
                    raise Cancelled
                loop.call_soon_threadsafe(events.put_nowait, progress)

            def work() -> None:
                token = context.attach(propagate.extract(carrier))
                try:
                    with tempfile.TemporaryDirectory() as folder:
                        result = generate_music(self._models, request, save_dir=Path(folder), progress=report)
                        paths = [song.path for song in result.songs if song.path is not None]
                        end: FromReplica = Files({path.name: path.read_bytes() for path in paths})
                except Exception as error:
                    end = Failed(type(error).__name__, error.stage if isinstance(error, AceStepError) else None)
                finally:
                    context.detach(token)
                loop.call_soon_threadsafe(events.put_nowait, end)

            thread = asyncio.create_task(asyncio.to_thread(work))
            try:
                while True:
                    event = await events.get()
                    yield event
                    if not isinstance(event, Progress):
                        return
            finally:
                # If the caller has disconnected, the song ends at its next step; only then is the card free.
                cancelled.set()
                await asyncio.shield(thread)

    def __del__(self) -> None:
        # Ray Serve ends a replica that drained without the interpreter's own end.
        if hasattr(self, "_telemetry"):
            self._telemetry.close()


def card_of(device: str, replica: str) -> Card:
    """The card that this process was given.

    Args:
        device: ``cuda`` or ``cpu``.
        replica: Ray Serve's name for the process.
    """
    host = platform.node() or "localhost"
    if device == "cpu":
        return Card(f"CPU {replica}", processor_name(), None, host)
    properties = torch.cuda.get_device_properties(0)
    uuid = f"GPU-{str(properties.uuid).removeprefix('GPU-')}"
    return Card(f"GPU {replica}", properties.name, uuid, host)
