"""Traces the loading of models: a live span of its own each, with the time and the memory that it took.

A load may happen inside a request, before the first, or beside one, so it is no stage of a request's tree.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

from opentelemetry.trace import Span, Tracer

from acestep_otel import semconv
from acestep_otel.recording.call import Call, LoadDefinition, ModelLoad
from acestep_otel.recording.clock import HOST
from acestep_otel.recording.instruments import Instruments
from acestep_otel.recording.outcomes import record_outcome
from acestep_otel.recording.redaction import Scrubber
from acestep_otel.recording.trace_tree import Attributes, AttributeValue, inside_request, never_raises
from acestep_otel.recording.vram import VramTracker


class ModelLoads:
    """Runs the loading of models.

    Args:
        tracer: that makes the spans.
        instruments: that record duration and memory.
        vram: the process's one reader of memory counters.
    """

    def __init__(self, tracer: Tracer, instruments: Instruments, vram: VramTracker) -> None:
        self._tracer = tracer
        self._instruments = instruments
        self._vram = vram

    def run(self, load: ModelLoad, definition: LoadDefinition, call: Call, common: Attributes) -> Any:
        """Run a call in a span, below whatever span is current.

        Args:
            load: what is loaded.
            definition: how it is recorded.
            call: what to run.
            common: attributes that every span carries.
        """
        attributes = {
            **common,
            semconv.MODEL_NAME: load.model,
            semconv.MODEL_ROLE: definition.role,
            semconv.CLOCK: HOST,
        }
        # Loading beside a running request uses the same memory counters, so it counts as one more request.
        with nullcontext() if inside_request() else self._vram.request(load.device):
            never_raises(self._vram.begin)(load.device)
            start_ns = time.perf_counter_ns()
            with self._tracer.start_as_current_span(
                semconv.MODEL_LOAD, attributes=attributes, record_exception=False, set_status_on_exception=False
            ) as span:
                try:
                    result = call.run()
                except BaseException as error:
                    never_raises(record_outcome)(span, error, Scrubber(load.user_texts))
                    raise
                if (failure := never_raises(definition.failure)(result)) is not None:
                    never_raises(record_outcome)(span, failure, Scrubber(load.user_texts))
                    return result
                seconds = (time.perf_counter_ns() - start_ns) / 1e9
                self._loaded(span, seconds, load)
                return result

    @never_raises
    def _loaded(self, span: Span, seconds: float, load: ModelLoad) -> None:
        attributes: dict[str, AttributeValue] = {
            semconv.STAGE: semconv.stage_of(semconv.MODEL_LOAD),
            semconv.REQUEST_MODEL: load.model,
        }
        self._instruments.record(semconv.STAGE_DURATION, seconds, attributes)
        if (reading := self._vram.read(load.device)) is not None:
            peak = reading.peak
            span.set_attribute(semconv.VRAM_PEAK_ALLOCATED, peak.allocated)
            span.set_attribute(semconv.VRAM_PEAK_RESERVED, peak.reserved)
            span.set_attribute(semconv.VRAM_SHARED, peak.shared)
            for kind, value in (("allocated", peak.allocated), ("reserved", peak.reserved)):
                self._instruments.record(semconv.VRAM_PEAK, value, {**attributes, semconv.VRAM_KIND: kind})
