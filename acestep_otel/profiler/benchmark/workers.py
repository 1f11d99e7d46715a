"""What a matrix on several workers has in common, whether they are processes of this host or actors of a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from acestep.cards import Card, models_of
from acestep.types import GenerationRequest
from acestep_otel.profiler.benchmark.cells import planner_songs
from acestep_otel.profiler.benchmark.matrix import Cell, longest_first
from acestep_otel.profiler.benchmark.protocol import Order, Ready
from acestep_otel.profiler.terminal import warn


def orders_of(requests: Mapping[Cell, GenerationRequest]) -> list[Order]:
    """Every cell as an order, in the order that they are handed out.

    Args:
        requests: of the matrix, in its order.
    """
    cells = list(requests)
    songs = planner_songs(requests)
    return [Order(cells.index(cell), cell, songs) for cell in longest_first(cells)]


def combined(ready: Sequence[Ready]) -> Ready:
    """What all workers are together: one matrix for all has the limits of the smallest.

    Args:
        ready: of each worker; at least one.
    """
    accelerators = [accelerator for each in ready for accelerator in each.environment.accelerators]
    return Ready(
        memory=min(each.memory for each in ready),
        environment=replace(ready[0].environment, accelerators=tuple(accelerators)),
    )


def warn_of_different_models(cards: Sequence[Card]) -> None:
    """Warn if the cards are of more than one model: their rows cannot be compared with each other."""
    if len(models := models_of(cards)) > 1:
        warn(f"cards are of different models ({', '.join(models)}): compare does not accept such a result file")
