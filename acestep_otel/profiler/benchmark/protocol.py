"""Messages between a benchmark's child process and its parent: one JSON object per line.

The parent sends the purpose of the child, and then one cell at a time; ``null`` ends the work. The child reports when
its device is ready and its models are loaded, the stages of a request, and the result of each cell.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from acestep.cards import Card
from acestep_otel.profiler.benchmark.matrix import Cell, CellResult
from acestep_otel.profiler.options import Options
from acestep_otel.profiler.report.environment import Environment
from acestep_otel.profiler.tier_test.protocol import (
    Refused,
    Spans,
    StageMark,
    read_environment,
    read_event,
    read_options,
)


@dataclass(frozen=True, slots=True)
class Employment:
    """The purpose of a child.

    Attributes:
        options: of the command line, with the device of the child.
        card: card of the child.
    """

    options: Options
    card: Card


@dataclass(frozen=True, slots=True)
class Order:
    """One cell to run.

    Attributes:
        index: its place in the matrix.
        cell: what to run.
        songs: largest number of songs that the language model generates at once in the whole benchmark.
    """

    index: int
    cell: Cell
    songs: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The child has determined its device; no model is loaded yet.

    Attributes:
        memory: GiB that determine the tier.
        environment: hardware and versions.
    """

    memory: float
    environment: Environment

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """Read what ``asdict`` made."""
        return cls(found["memory"], read_environment(found["environment"]))


@dataclass(frozen=True, slots=True)
class Loaded:
    """The models are loaded: it waits for orders.

    Attributes:
        model_name: name of the diffusion model.
        placement: placement of the models, in words.
    """

    model_name: str
    placement: tuple[str, ...]

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """Read what ``asdict`` made."""
        return cls(found["model_name"], tuple(found["placement"]))


@dataclass(frozen=True, slots=True)
class Done:
    """A cell is complete.

    Attributes:
        result: its row.
        models_line: the models that ran and their placement; ``None`` before the first run.
    """

    result: CellResult
    models_line: str | None

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """Read what ``asdict`` made."""
        return cls(CellResult.from_json(found["result"]), found["models_line"])


Event = Ready | Refused | Loaded | StageMark | Spans | Done

_READERS: Final[Mapping[str, Callable[[dict[str, Any]], Event]]] = {
    kind.__name__: kind.from_json for kind in (Ready, Refused, Loaded, StageMark, Spans, Done)
}


def decode(line: str) -> Event:
    """Read an event.

    Raises:
        ValueError: the line is no event.
    """
    return read_event(line, _READERS)


def encode_employment(employment: Employment) -> str:
    """One line, without its end."""
    return json.dumps(asdict(employment), default=str)


def decode_employment(line: str) -> Employment:
    """Read what ``encode_employment`` wrote."""
    found = json.loads(line)
    return Employment(read_options(found["options"]), Card(**found["card"]))


def encode_order(order: Order | None) -> str:
    """One line, without its end; ``None`` is the end of the work."""
    return json.dumps(None if order is None else asdict(order))


def decode_order(line: str) -> Order | None:
    """Read what ``encode_order`` wrote."""
    found = json.loads(line)
    return None if found is None else Order(found["index"], Cell(**found["cell"]), found["songs"])
