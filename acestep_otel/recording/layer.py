"""The tracing layer as the seams see it: starts and finishes requests, and wraps stages around calls."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import Meter
from opentelemetry.trace import Span, SpanKind, Tracer

from acestep_otel import semconv
from acestep_otel.recording.clock import Clocks
from acestep_otel.recording.emission import Emitter
from acestep_otel.recording.instruments import Instruments
from acestep_otel.recording.phase import PhaseRecord
from acestep_otel.recording.privacy import Scrubber
from acestep_otel.recording.stages import (
    AttributeValue,
    RequestRecording,
    Stage,
    current_recording,
    never_raises,
    reset_current,
    set_current,
)
from acestep_otel.recording.vram import VramTracker
from acestep_otel.settings import Detail, Settings

if TYPE_CHECKING:
    import torch

Attributes = Mapping[str, AttributeValue]

_annotations: ContextVar[Attributes | None] = ContextVar("acestep_otel_annotations", default=None)


@contextmanager
def annotated(attributes: Attributes) -> Iterator[None]:
    """Put attributes on every span of the requests made inside the block; blocks add up."""
    token = _annotations.set({**(_annotations.get() or {}), **attributes})
    try:
        yield
    finally:
        _annotations.reset(token)


def warmup() -> AbstractContextManager[None]:
    """Mark the spans of requests made inside the block with ``acestep.warmup``."""
    return annotated({semconv.WARMUP: True})


@dataclass(frozen=True)
class Call:
    """The call that a wrapper stands in for."""

    wrapped: Callable[..., Any]
    instance: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self) -> Any:
        """Make the call."""
        return self.wrapped(*self.args, **self.kwargs)

    @cached_property
    def arguments(self) -> Mapping[str, Any]:
        """Every argument by the name of its parameter, however it was passed; defaults included."""
        signature = _signature(getattr(self.wrapped, "__func__", self.wrapped))
        owner = () if self.instance is None else (self.instance,)
        arguments = signature.bind(*owner, *self.args, **self.kwargs)
        arguments.apply_defaults()
        return arguments.arguments


@lru_cache(maxsize=64)
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


@dataclass(frozen=True, slots=True)
class RequestStart:
    """What is known about a request before it runs.

    Attributes:
        device: device whose clock and memory are read.
        attributes: of the root span; samplers see these.
        user_texts: what must not appear in exception messages.
    """

    device: torch.device
    attributes: Attributes
    user_texts: tuple[str, ...]


class StageRecorder(Protocol):
    """What the seams call: the tracing layer, or whatever else wants to know when a stage starts and ends."""

    @property
    def settings(self) -> Settings:
        """What the recorder was told to do."""

    def request(self, name: str, call: Call, start: RequestStart, found: Callable[[Any], Attributes], /) -> Any:
        """Run a call as a request (``TracingLayer.request``)."""

    def stage(self, name: str, call: Call, /, *args: Any, **details: Any) -> Any:
        """Run a call as a stage of the current request (``TracingLayer.stage``)."""

    def load(self, call: Call, /, *, model: str, role: str, device: torch.device) -> Any:
        """Run a model's loading (``TracingLayer.load``)."""

    def adopt(self, name: str, start_ns: int, attributes: Attributes, parent: Context, kind: SpanKind, /) -> bool:
        """Emit a span that a library below measured (``TracingLayer.adopt``); returns whether it did."""


class TracingLayer:
    """Everything that instrumentation holds while it is switched on.

    Attributes:
        settings: detail level and content capture.
    """

    def __init__(self, tracer: Tracer, meter: Meter, settings: Settings, run_id: str) -> None:
        self.settings = settings
        self._tracer = tracer
        self._instruments = Instruments(meter)
        self._emitter = Emitter(tracer, self._instruments, settings.detail)
        self._clocks = Clocks()
        self._vram = VramTracker()
        self._run_id = run_id

    def request(self, name: str, call: Call, start: RequestStart, found: Callable[[Any], Attributes]) -> Any:
        """Run a call as a request: the root of a tree. Inside another request it is just run.

        Args:
            name: name of the root span.
            call: what to run.
            start: what is known before the call.
            found: attributes known from the result.
        """
        started = None if current_recording() is not None else self._start(name, start)
        if started is None:
            return call.run()
        recording, span = started
        recording_token = set_current(recording)
        context_token = otel_context.attach(trace.set_span_in_context(span))
        error: BaseException | None = None
        self._count_active(name, start, 1)
        try:
            with self._vram.request(start.device):
                result = call.run()
            self._describe(recording.root, lambda: found(result))
        except BaseException as raised:
            error = raised
            raise
        finally:
            otel_context.detach(context_token)
            reset_current(recording_token)
            self._count_active(name, start, -1)
            self._finish(recording, span, error, start.user_texts)
        return result

    def stage(
        self,
        name: str,
        call: Call,
        *,
        detail: Detail = Detail.STAGE,
        device_clock: bool = True,
        tracks_memory: bool = False,
        phase: PhaseRecord | None = None,
        known: Callable[[], Attributes] | None = None,
        found: Callable[[Stage, Any], Attributes] | None = None,
    ) -> Any:
        """Run a call as a stage of the current request; without one, or below the detail level, just run it.

        Args:
            name: name of the span.
            call: what to run.
            detail: level from which on this stage is recorded.
            device_clock: whether its times come from the device's clock.
            tracks_memory: whether its memory peak is taken.
            phase: collects token times while the call runs.
            known: attributes known before the call; still there when it fails.
            found: attributes known from the stage and its result.
        """
        recording = current_recording()
        if recording is None or recording.detail < detail:
            return call.run()
        stage = self._begin(recording, name, device_clock, tracks_memory)
        if stage is None:
            return call.run()
        stage.phase = phase
        try:
            if known is not None:
                self._describe(stage, known)
            result = call.run()
        except BaseException as error:
            self._end(recording, stage, error, tracks_memory)
            raise
        self._end(recording, stage, None, tracks_memory)
        if found is not None:
            self._describe(stage, lambda: found(stage, result))
        return result

    def load(self, call: Call, *, model: str, role: str, device: torch.device) -> Any:
        """Run a model's loading in a span of its own, below whatever span is current."""
        attributes = {**self._common(), semconv.MODEL_NAME: model, semconv.MODEL_ROLE: role, semconv.CLOCK: "host"}
        never_raises(self._vram.begin)(device)
        start_ns = time.perf_counter_ns()
        with self._tracer.start_as_current_span(semconv.MODEL_LOAD, attributes=attributes) as span:
            result = call.run()
            seconds = (time.perf_counter_ns() - start_ns) / 1e9
            self._loaded(span, seconds, model, device)
            return result

    def adopt(self, name: str, start_ns: int, attributes: Attributes, parent: Context, kind: SpanKind) -> bool:
        """Emit a span that a library below the engine measured by itself and that ends now.

        Args:
            name: as the library has it.
            start_ns: Unix nanoseconds.
            attributes: as the library has them.
            parent: context of the span that it lies below.
            kind: as the library has it.

        Returns:
            True: nobody else has to emit it.
        """
        self._tracer.start_span(
            name, context=parent, start_time=start_ns, attributes={**self._common(), **attributes}, kind=kind
        ).end()
        return True

    @never_raises
    def _loaded(self, span: Span, seconds: float, model: str, device: torch.device) -> None:
        attributes: dict[str, AttributeValue] = {
            semconv.STAGE: semconv.stage_of(semconv.MODEL_LOAD),
            semconv.REQUEST_MODEL: model,
        }
        self._instruments.record(semconv.STAGE_DURATION, seconds, attributes)
        if (reading := self._vram.read(device)) is not None:
            peak = reading.peak
            span.set_attribute(semconv.VRAM_PEAK_ALLOCATED, peak.allocated)
            span.set_attribute(semconv.VRAM_PEAK_RESERVED, peak.reserved)
            for kind, value in (("allocated", peak.allocated), ("reserved", peak.reserved)):
                self._instruments.record(semconv.VRAM_PEAK, value, {**attributes, semconv.VRAM_KIND: kind})

    def _common(self) -> dict[str, AttributeValue]:
        return {semconv.RUN_ID: self._run_id, **(_annotations.get() or {})}

    @never_raises
    def _start(self, name: str, start: RequestStart) -> tuple[RequestRecording, Span]:
        recording = RequestRecording(
            name,
            clock=self._clocks.for_device(start.device),
            device=start.device,
            detail=self.settings.detail,
            vram=self._vram,
        )
        recording.root.attributes.update(start.attributes)
        # The root's own mark, so that its span is as long as what the metrics record.
        started_ns = recording.clock.host_time(recording.root.start)
        span = self._tracer.start_span(name, start_time=started_ns, attributes={**self._common(), **start.attributes})
        return recording, span

    @never_raises
    def _count_active(self, name: str, start: RequestStart, change: int) -> None:
        attributes = {**start.attributes, semconv.STAGE: semconv.stage_of(name)}
        self._instruments.record(semconv.REQUESTS_ACTIVE, change, attributes)

    @never_raises
    def _finish(
        self, recording: RequestRecording, span: Span, error: BaseException | None, user_texts: tuple[str, ...]
    ) -> None:
        # What the end could not read is missing on the root, and is no reason to lose the trace.
        never_raises(recording.end)(recording.root, error)
        self._emitter.emit(recording, span, Scrubber(user_texts), self._common())
        if (limit := self._vram.limit(recording.device)) is not None:
            self._instruments.record(semconv.VRAM_LIMIT, limit, {})

    @never_raises
    def _begin(self, recording: RequestRecording, name: str, device_clock: bool, tracks_memory: bool) -> Stage:
        return recording.begin(name, device_clock=device_clock, tracks_memory=tracks_memory)

    @never_raises
    def _end(self, recording: RequestRecording, stage: Stage, error: BaseException | None, tracks_memory: bool) -> None:
        recording.end(stage, error, tracks_memory=tracks_memory)

    @never_raises
    def _describe(self, stage: Stage, attributes: Callable[[], Attributes]) -> None:
        stage.attributes.update(attributes())
