"""Cells on several cards: a child process on each, cells assigned longest first, all spans in one trace.

The parent never uses CUDA. If a child is killed, its cell is a row with the reason, and the card gets a new child. A
card whose children end without finishing a cell is no longer used, and the other cards run its cells.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Final, Self

from opentelemetry.trace import Span, StatusCode, Tracer, set_span_in_context

from acestep.cards import Card
from acestep.types import GenerationRequest
from acestep_otel import __version__, semconv
from acestep_otel.errors import SetupError
from acestep_otel.profiler.benchmark.matrix import Cell, CellResult
from acestep_otel.profiler.benchmark.protocol import (
    Done,
    Employment,
    Event,
    Loaded,
    Order,
    Ready,
    decode,
    encode_employment,
    encode_order,
)
from acestep_otel.profiler.benchmark.workers import combined, orders_of, warn_of_different_models
from acestep_otel.profiler.children.cards import card_attributes, chosen_cards
from acestep_otel.profiler.children.processes import Child, Children, Ending, carrier_of, telemetry_environment
from acestep_otel.profiler.errors import RunFailed
from acestep_otel.profiler.options import Options
from acestep_otel.profiler.report.environment import Environment
from acestep_otel.profiler.report.spans import FinishedSpan
from acestep_otel.profiler.run.progress import CellBar, loading
from acestep_otel.profiler.telemetry.providers import Telemetry
from acestep_otel.profiler.terminal import echo, warn
from acestep_otel.profiler.tier_test.forwarding import OpenStages
from acestep_otel.profiler.tier_test.protocol import Refused, Spans, StageMark

_MODULE: Final = "acestep_otel.profiler.benchmark.child"
_FRUITLESS_CHILDREN: Final = 2
"""Number of children in a row without a finished cell after which a card is no longer used."""


@dataclass
class _Worker:
    """One card, and the child that is on it now.

    Attributes:
        card: the card.
        child: the child that runs on it, or the last one.
        fruitless: children in a row that ended without a finished cell.
        ready: the device as reported by the first child; ``None`` before.
        order: cell that its child has; ``None`` while it has none.
        loaded: whether its child waits for orders.
        span: span of its child.
        stages: stages that its child is in.
    """

    card: Card
    child: Child | None = None
    fruitless: int = 0
    ready: Ready | None = None
    order: Order | None = None
    loaded: bool = False
    span: Span | None = None
    stages: OpenStages = field(default_factory=OpenStages)

    @property
    def left_out(self) -> bool:
        """Whether the card gets no more children."""
        return self.fruitless >= _FRUITLESS_CHILDREN


class CardCells:
    """Cells on several cards (``acestep_otel.profiler.benchmark.mode.Cells``).

    Used as a context manager: entering starts a child on every card and waits until all know their device.
    """

    def __init__(self, options: Options, telemetry: Telemetry) -> None:
        """Find the cards.

        Raises:
            SetupError: ``--gpus`` names no card, or one that does not exist.
        """
        assert options.gpus is not None
        self.cards = chosen_cards(options.gpus, options.device)
        self.memory = 0.0
        self.environment = Environment.current(ask_pytorch=False)
        self.models_line: str | None = None
        self.model_name = ""
        # A cell whose process was killed is a row of its own.
        self.lost: tuple[Mapping[str, Any], ...] = ()
        self._options = options
        self._telemetry = telemetry
        self._tracer: Tracer = telemetry.tracer_provider.get_tracer(
            "acestep_otel", __version__, schema_url=semconv.SCHEMA_URL
        )
        self._children: Children[Event] = Children(decode)
        self._workers = [_Worker(card) for card in self.cards]
        self._lost: str | None = None
        self._placement: tuple[str, ...] = ()
        self._described = False
        self._waiting: deque[Order] = deque()

    def __enter__(self) -> Self:
        self._root = self._tracer.start_span(semconv.BENCHMARK, attributes={semconv.CLOCK: "host"})
        try:
            for worker in self._workers:
                self._start(worker)
            with loading(f"models on {len(self.cards)} cards", enabled=not self._options.no_progress):
                while any(worker.ready is None and not worker.left_out for worker in self._workers):
                    child, event = self._children.next_event()
                    self._receive(self._worker_of(child), event)
            if not self._children.running:
                raise SetupError(f"no process could be started on a card: {self._lost}")
        except BaseException:
            self._end()
            raise
        ready = [worker.ready for worker in self._workers if worker.ready is not None]
        together = combined(ready)
        self.memory, self.environment = together.memory, together.environment
        warn_of_different_models(self.cards)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def results(self, requests: Mapping[Cell, GenerationRequest]) -> Iterator[CellResult]:
        """Run every cell, longest first, and yield each result when it is complete.

        Raises:
            RunFailed: no card is left for the remaining cells.
        """
        cells = list(requests)
        self._waiting.extend(orders_of(requests))
        try:
            with CellBar(cells, enabled=not self._options.no_progress) as bar:
                for worker in self._workers:
                    self._hand_out(worker, bar)
                while self._children.running:
                    child, event = self._children.next_event()
                    worker = self._worker_of(child)
                    result = self._receive(worker, event)
                    if isinstance(event, StageMark) and worker.order is not None:
                        bar.show_card(worker.card, f"{worker.order.cell}: {semconv.stage_of(event.name)}")
                    if result is not None:
                        bar.finish(result.cell)
                        yield result
                    if isinstance(event, Ending):
                        bar.show_card(worker.card, None)
                    elif isinstance(event, (Loaded, Done)):
                        self._hand_out(worker, bar)
        finally:
            self._end()
        if self._waiting:
            raise RunFailed(f"{len(self._waiting)} of {len(cells)} cells were not run, no card remains: {self._lost}")

    def lines(self) -> Iterator[str]:
        """None: the rows contain the failures."""
        return iter(())

    def _worker_of(self, child: Child) -> _Worker:
        return next(worker for worker in self._workers if worker.child is child)

    def _hand_out(self, worker: _Worker, bar: CellBar) -> None:
        """Give a waiting child the next cell, or end it."""
        if worker.child is None or not worker.loaded or worker.order is not None:
            return
        worker.order = self._waiting.popleft() if self._waiting else None
        if worker.order is not None:
            self._describe_placement()
            bar.start(worker.order.cell, worker.card)
        worker.child.send(encode_order(worker.order))

    def _describe_placement(self) -> None:
        """Print the placement of the models once: it is equal for every child."""
        if not self._described:
            self._described = True
            for line in self._placement:
                echo(line)

    def _start(self, worker: _Worker) -> None:
        worker.loaded = False
        worker.stages = OpenStages()
        attributes = {**card_attributes(worker.card), semconv.CLOCK: "host"}
        below = set_span_in_context(self._root)
        worker.span = self._tracer.start_span(semconv.BENCHMARK_PROCESS, context=below, attributes=attributes)
        inherited = worker.card.environment(os.environ, cards=len(self.cards))
        options = replace(self._options, device=worker.card.device)
        worker.child = self._children.start(
            _MODULE,
            telemetry_environment(inherited, options, trace_parent=carrier_of(worker.span)["traceparent"]),
            encode_employment(Employment(options, worker.card)),
        )

    def _receive(self, worker: _Worker, event: Event | Ending) -> CellResult | None:
        """Process an event; returns a row if a cell is complete."""
        match event:
            case Ready():
                worker.ready = worker.ready or event
            case Refused():
                raise SetupError(f"{worker.card.label}: {event.failure.message}")
            case Loaded():
                worker.loaded = True
                self.model_name = event.model_name
                self._placement = self._placement or event.placement
            case StageMark():
                worker.stages.follow(event)
            case Spans():
                self._telemetry.adopt(FinishedSpan.from_otlp_json([event.otlp]))
            case Done():
                worker.order = None
                worker.fruitless = 0
                if event.models_line is not None:
                    self.models_line = event.models_line
                return replace(event.result, card=worker.card)
            case Ending():
                return self._ended(worker, event)
        return None

    def _ended(self, worker: _Worker, ending: Ending) -> CellResult | None:
        """Process the end of a child; returns the row of a cell that it did not finish."""
        running = worker.stages.innermost
        self._end_span(worker, ending)
        self._telemetry.write_ended_spans()
        if ending.traceback is not None:
            # A defect: the traceback is printed, because the rows have no field for it.
            echo(ending.traceback, err=True)
        order, worker.order = worker.order, None
        if ending.exit_code == 0 and order is None and worker.loaded:
            return None
        worker.fruitless += 1
        worker.loaded = False
        failure = ending.failure(None if running is None else semconv.stage_of(running))
        self._lost = f"{worker.card.label}: {failure.message}"
        if not worker.left_out and (self._waiting or worker.ready is None):
            self._start(worker)
        elif worker.left_out:
            warn(f"{worker.card.label} is no longer used after {worker.fruitless} processes: {failure.message}")
        return None if order is None else CellResult(order.cell, (), failure, (), worker.card)

    def _end_span(self, worker: _Worker, ending: Ending | None) -> None:
        if worker.span is None:
            return
        worker.stages.trace(self._tracer, worker.span, time.time_ns())
        if ending is not None:
            worker.span.set_attribute(semconv.BENCHMARK_EXIT_CODE, ending.exit_code)
            if ending.exit_code != 0:
                worker.span.set_attribute(semconv.ERROR_TYPE, "Crashed")
                worker.span.set_status(StatusCode.ERROR, f"exit code {ending.exit_code}")
        worker.span.end()
        worker.span = None

    def _end(self) -> None:
        """End all remaining children and spans."""
        self._children.end()
        for worker in self._workers:
            self._end_span(worker, None)
        if self._root.is_recording():
            self._root.end()
