"""Messages between a child process and its parent: one JSON object per line.

The parent writes one line, the job, and keeps the pipe open until it ends. The child writes each event immediately,
so that its events are in the pipe when it ends.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from acestep.cards import Card
from acestep_otel.profiler.benchmark.matrix import Failure
from acestep_otel.profiler.options import Options
from acestep_otel.profiler.report.environment import Accelerator, Environment
from acestep_otel.profiler.tier_test.plan import Trials
from acestep_otel.profiler.tier_test.trials import Observation, Trial

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True, slots=True)
class Started:
    """The child has selected its device and limited its memory; no model is loaded yet.

    Attributes:
        device: for example ``cuda:0``.
        config: the tier that it detected, field by field.
        environment: hardware and versions.
    """

    device: str
    config: dict[str, Any]
    environment: Environment

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """Read what ``asdict`` made."""
        return cls(found["device"], found["config"], read_environment(found["environment"]))


def read_environment(found: dict[str, Any]) -> Environment:
    """Read what ``asdict`` made of an environment."""
    accelerators = tuple(Accelerator(**accelerator) for accelerator in found["accelerators"])
    return Environment(**{**found, "accelerators": accelerators})


@dataclass(frozen=True, slots=True)
class Refused:
    """The child refuses the job; nothing was loaded."""

    failure: Failure

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """Read what ``asdict`` made."""
        return cls(Failure(**found["failure"]))


@dataclass(frozen=True, slots=True)
class StageMark:
    """A stage began or ended in the child.

    Attributes:
        name: of its span.
        ended: whether this is its end.
        time_ns: Unix nanoseconds.
        trial: index of the trial in the job.
        driver: bytes of the process by its driver; ``None`` if it was not read.
    """

    name: str
    ended: bool
    time_ns: int
    trial: int
    driver: int | None

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """Read what ``asdict`` made."""
        return cls(**found)


@dataclass(frozen=True, slots=True)
class Spans:
    """Spans that ended in the child, as one OTLP JSON request."""

    otlp: str

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """Read what ``asdict`` made."""
        return cls(**found)


@dataclass(frozen=True, slots=True)
class Finished:
    """A trial is complete.

    Attributes:
        trial: its index in the job.
        failure: what ended it, or ``None``.
        out_of_memory: whether that was a lack of memory.
        observation: its measurements.
    """

    trial: int
    failure: Failure | None
    out_of_memory: bool
    observation: Observation

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """Read what ``asdict`` made."""
        failure = None if found["failure"] is None else Failure(**found["failure"])
        return cls(found["trial"], failure, found["out_of_memory"], Observation.from_json(found["observation"]))


Event = Started | Refused | StageMark | Spans | Finished

_READERS: Final[Mapping[str, Callable[[dict[str, Any]], Event]]] = {
    kind.__name__: kind.from_json for kind in (Started, Refused, StageMark, Spans, Finished)
}


def encode(event: DataclassInstance) -> str:
    """One line, without its end."""
    return json.dumps({"event": type(event).__name__, **asdict(event)}, default=str)


def decode(line: str) -> Event:
    """Read what ``encode`` wrote.

    Raises:
        ValueError: the line is something else.
    """
    return read_event(line, _READERS)


Said = TypeVar("Said")


def read_event(line: str, readers: Mapping[str, Callable[[dict[str, Any]], Said]]) -> Said:
    """Read an event by its name.

    Args:
        line: line that ``encode`` wrote.
        readers: readers of the known events.

    Raises:
        ValueError: the line is something else.
    """
    try:
        found = json.loads(line)
        return readers[found.pop("event")](found)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"not an event of a child process: {line[:80]!r}") from error


def encode_job(job: Trials) -> str:
    """One line, without its end."""
    return json.dumps(asdict(job), default=str)


def decode_job(line: str) -> Trials:
    """Read what ``encode_job`` wrote."""
    found = json.loads(line)
    trials = tuple(Trial.from_json(trial) for trial in found["trials"])
    card = None if found["card"] is None else Card(**found["card"])
    return Trials(read_options(found["options"]), trials, card)


def read_options(found: dict[str, Any]) -> Options:
    """Read what ``asdict`` made of the command line's options."""
    # JSON has neither paths nor tuples; the annotations of the fields restore them.
    for option in fields(Options):
        value = found[option.name]
        if value is not None and "Path" in str(option.type):
            found[option.name] = Path(value)
        elif isinstance(value, list):
            found[option.name] = tuple(value)
    return Options(**found)
