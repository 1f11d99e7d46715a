"""Messages between the service and the process of a card, over a pipe."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.metrics_core import Metric

from acestep import Card, GenerationRequest, Progress


@dataclass(frozen=True, slots=True)
class Start:
    """The first message: what the process is for."""

    options: argparse.Namespace
    card: Card


@dataclass(frozen=True, slots=True)
class Song:
    """Generate this.

    Attributes:
        job_id: of the job.
        request: what to generate.
        carrier: the caller's context: its trace, its baggage, its sampling decision.
        folder: where the files go.
    """

    job_id: str
    request: GenerationRequest
    carrier: Mapping[str, str]
    folder: Path


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop this song at its next step."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Count:
    """Send the metrics."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Cancel the current song, deliver the telemetry, and end."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The models are loaded."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The models cannot be loaded, for a reason that another try does not change."""

    message: str


@dataclass(frozen=True, slots=True)
class Made:
    """The songs are generated."""

    files: Sequence[Path]


@dataclass(frozen=True, slots=True)
class Started:
    """A replica has begun with the song."""

    card: Card


@dataclass(frozen=True, slots=True)
class Files:
    """The songs of a replica, which may be on another host: content by file name."""

    contents: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Failed:
    """The songs were not generated.

    Attributes:
        error: class name of the exception; its message may quote the request.
        stage: of the engine, if the exception has one.
    """

    error: str
    stage: str | None


@dataclass(frozen=True, slots=True)
class Counted:
    """The process's metrics."""

    families: Sequence[Metric]


FromService = Start | Song | Cancel | Count | Stop
FromCard = Ready | Refused | Progress | Made | Failed | Counted
