"""The child process of a benchmark: one card, models loaded once, and one ordered cell after the other.

Started by its parent as a module. Reads orders from standard input and writes events to standard output
(``acestep_otel.profiler.benchmark.protocol``); all other output goes to standard error.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from opentelemetry import context as otel_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from acestep.errors import AceStepError
from acestep.gpu_config import gpu_config
from acestep_otel.errors import SetupError
from acestep_otel.patches.engine import PATCHES
from acestep_otel.patches.patcher import Patcher
from acestep_otel.profiler.benchmark.cells import CellRunner, cell_request, prepare_device, require_planner
from acestep_otel.profiler.benchmark.matrix import Failure, Matrix
from acestep_otel.profiler.benchmark.protocol import (
    Done,
    Employment,
    Event,
    Loaded,
    Order,
    Ready,
    decode_employment,
    decode_order,
)
from acestep_otel.profiler.children.cards import card_attributes
from acestep_otel.profiler.children.parent import Parent
from acestep_otel.profiler.children.processes import TRACE_PARENT
from acestep_otel.profiler.report.environment import Environment
from acestep_otel.profiler.run.example import load_example
from acestep_otel.profiler.run.placement import describe_placement
from acestep_otel.profiler.telemetry.providers import Telemetry, detail_level, flush_telemetry, instrumented
from acestep_otel.profiler.tier_test.forwarding import SpanForwarder
from acestep_otel.profiler.tier_test.journal import StageJournal
from acestep_otel.profiler.tier_test.memory import MemoryWatch
from acestep_otel.profiler.tier_test.protocol import Refused, encode
from acestep_otel.recording import annotated


def main() -> None:
    """Execute the orders from standard input."""
    parent = Parent()
    employment = decode_employment(parent.hear())
    otel_context.attach(TraceContextTextMapPropagator().extract({"traceparent": os.environ.get(TRACE_PARENT, "")}))
    serve(employment, lambda: decode_order(parent.hear()), lambda event: parent.say(encode(event)))


def serve(employment: Employment, next_order: Callable[[], Order | None], send: Callable[[Event], None]) -> None:
    """Run cells in this process until there are no more orders.

    Args:
        employment: the purpose of this process.
        next_order: waits for the next cell; ``None`` after the last.
        send: called with every event.
    """
    options = employment.options
    with Telemetry() as telemetry, instrumented(telemetry, detail_level(options.detail)):
        telemetry.tracer_provider.add_span_processor(SpanForwarder(send))
        runner = CellRunner(options, telemetry.collector)
        # The driver's value is not read: the journal serves for stages that a kill interrupts, not for memory.
        journal = StageJournal(send, MemoryWatch(None))
        patcher = Patcher(journal)
        with annotated(card_attributes(employment.card)):
            try:
                example = load_example(options.example)
                memory = prepare_device(options)
                send(Ready(memory, Environment.current()))
                matrix = Matrix.of(options, gpu_config(memory))
                require_planner(options, {cell: cell_request(example, options, cell) for cell in matrix.cells})
                # Around the tracing layer: a request's spans are handed over before the journal reports its end.
                patcher.apply(PATCHES)
                runner.load()
            except (SetupError, AceStepError) as error:
                send(Refused(Failure.of(error.__cause__ if isinstance(error.__cause__, AceStepError) else error)))
                return
            try:
                send(Loaded(runner.model_name, tuple(describe_placement(runner.models.placement, options))))
                for order in iter(next_order, None):
                    journal.trial = order.index
                    result = runner.run_cell(
                        order.cell, order.index, cell_request(example, options, order.cell), order.songs
                    )
                    flush_telemetry()
                    journal.intervals.clear()
                    send(Done(result, runner.models_line))
            finally:
                patcher.remove()


if __name__ == "__main__":
    main()
