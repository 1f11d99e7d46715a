"""A benchmark's worker on a Ray cluster: one card of one node that keeps its models and runs the assigned cells.

Ray's own tracing is off. The caller's context is an argument of each call, spans return with each result, and the
actor itself sends its metrics after each cell, because its process may be lost at any time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack

import torch
from opentelemetry import context as otel_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from acestep.cards import Card, host_name, processor_name
from acestep.errors import AceStepError
from acestep.gpu_config import gpu_config
from acestep_otel.errors import SetupError
from acestep_otel.profiler.benchmark.cells import CellRunner, cell_request, prepare_device, require_planner
from acestep_otel.profiler.benchmark.matrix import Failure, Matrix
from acestep_otel.profiler.benchmark.protocol import Done, Loaded, Order, Ready
from acestep_otel.profiler.children.cards import card_attributes
from acestep_otel.profiler.options import Options
from acestep_otel.profiler.report.environment import Environment
from acestep_otel.profiler.run.example import load_example
from acestep_otel.profiler.run.placement import describe_placement
from acestep_otel.profiler.telemetry.providers import Telemetry, detail_level, flush_telemetry, instrumented
from acestep_otel.profiler.tier_test.forwarding import SpanForwarder
from acestep_otel.profiler.tier_test.protocol import Refused
from acestep_otel.recording import annotated
from acestep_otel.recording.gpu_metrics import uuid_of


class CellActor:
    """The actor; every method is one call of the driver."""

    def __init__(self, options: Options, index: int) -> None:
        """Trace the engine in this process.

        Args:
            options: of the command line, with the device of the actor.
            index: index of the actor, for its label.
        """
        self._options = options
        self._index = index
        self._spans: list[str] = []
        self._telemetry = Telemetry()
        self._open = ExitStack()
        self._open.enter_context(self._telemetry)
        self._open.enter_context(instrumented(self._telemetry, detail_level(options.detail)))
        self._telemetry.tracer_provider.add_span_processor(SpanForwarder(lambda spans: self._spans.append(spans.otlp)))
        self._runner = CellRunner(options, self._telemetry.collector)

    def prepare(self) -> tuple[Ready, Card, int] | Refused:
        """Make the device ready; returns its description, the card and the actor's process id."""
        try:
            memory = prepare_device(self._options)
        except (SetupError, AceStepError) as error:
            return Refused(Failure.of(error))
        self._memory = memory
        return Ready(memory, Environment.current()), self._card(), os.getpid()

    def load(self, carrier: Mapping[str, str]) -> tuple[Loaded, list[str]] | Refused:
        """Load the models.

        Args:
            carrier: the caller's context.
        """
        options = self._options
        try:
            example = load_example(options.example)
            matrix = Matrix.of(options, gpu_config(self._memory))
            require_planner(options, {cell: cell_request(example, options, cell) for cell in matrix.cells})
            token = otel_context.attach(TraceContextTextMapPropagator().extract(carrier))
            try:
                with annotated(card_attributes(self._card())):
                    self._runner.load()
            finally:
                otel_context.detach(token)
        except (SetupError, AceStepError) as error:
            return Refused(Failure.of(error))
        placement = tuple(describe_placement(self._runner.models.placement, options))
        return Loaded(self._runner.model_name, placement), self._taken()

    def run(self, order: Order, carrier: Mapping[str, str]) -> tuple[Done, list[str]]:
        """Run a cell; returns its row and its spans.

        Args:
            order: the cell.
            carrier: the caller's context.
        """
        request = cell_request(load_example(self._options.example), self._options, order.cell)
        token = otel_context.attach(TraceContextTextMapPropagator().extract(carrier))
        try:
            with annotated(card_attributes(self._card())):
                result = self._runner.run_cell(order.cell, order.index, request, order.songs)
        finally:
            otel_context.detach(token)
        flush_telemetry()
        # Sent now, because the node may be lost later.
        self._telemetry.meter_provider.force_flush(2_000)
        return Done(result, self._runner.models_line), self._taken()

    def close(self) -> None:
        """Deliver remaining telemetry: Ray ends actors without running exit handlers."""
        self._open.close()

    def _taken(self) -> list[str]:
        spans, self._spans[:] = list(self._spans), []
        return spans

    def _card(self) -> Card:
        if self._options.device == "cpu":
            return Card(f"CPU {self._index}", processor_name(), None, host_name())
        device = torch.device("cuda", torch.cuda.current_device())
        return Card(f"GPU {self._index}", torch.cuda.get_device_name(device), uuid_of(device), host_name())
