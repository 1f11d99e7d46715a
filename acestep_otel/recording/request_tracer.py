"""Runs calls as requests and stages: starts and finishes requests, and hands finished ones over for emission."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import Meter
from opentelemetry.trace import Span, SpanKind, Tracer

from acestep_otel import semconv
from acestep_otel.recording.background_emission import Deferral, follow_forks
from acestep_otel.recording.call import Call, LoadDefinition, RequestDefinition, StageDefinition
from acestep_otel.recording.clock import HOST, Clocks, HostClock, host_mark
from acestep_otel.recording.emission import Emitter, metric_attributes
from acestep_otel.recording.energy_meter import EnergyMeter
from acestep_otel.recording.gpu_metrics import GpuWatch
from acestep_otel.recording.instruments import Instruments
from acestep_otel.recording.kernel_profile import KernelProfiler, Profile
from acestep_otel.recording.model_load import ModelLoads
from acestep_otel.recording.outcomes import is_out_of_memory
from acestep_otel.recording.phase import PhaseRecord
from acestep_otel.recording.redaction import Scrubber
from acestep_otel.recording.trace_tree import (
    Attributes,
    AttributeValue,
    RequestRecording,
    Stage,
    Unrecorded,
    current_annotations,
    current_recording,
    inside_request,
    is_measured,
    never_raises,
    reset_current,
    set_current,
)
from acestep_otel.recording.vram import VramTracker
from acestep_otel.recording.watchdog import Watchdog
from acestep_otel.settings import Settings

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("acestep_otel")


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    """A request that is running: its live root span, and its recording unless it was sampled out."""

    device: torch.device
    root: Stage
    span: Span
    recording: RequestRecording | Unrecorded
    scrub: Scrubber
    common: Attributes


class RequestTracer:
    """Everything that instrumentation holds while it is switched on.

    Attributes:
        settings: detail level and content capture.
    """

    def __init__(self, tracer: Tracer, meter: Meter, settings: Settings, run_id: str) -> None:
        self.settings = settings
        self._tracer = tracer
        self._instruments = Instruments(meter)
        # So that dashboards have a zero, and rates a point to start from.
        self._instruments.record(semconv.TRACES_DROPPED, 0, {})
        self._emitter = Emitter(tracer, self._instruments, settings.detail, settings.songs)
        self._gpus = GpuWatch.of(meter)
        self._profiler = KernelProfiler(settings, self._instruments)
        self._running: dict[int, _Request] = {}
        self._closed = False
        self._start_afresh(run_id)
        follow_forks(self._before_fork, self._after_fork, self._start_afresh)

    def _before_fork(self) -> None:
        self._deferral.pause()

    def _after_fork(self) -> None:
        self._deferral.resume()

    def _start_afresh(self, run_id: str | None = None) -> None:
        """What belongs to one process: a forked child must not take over its parent's locks, events and requests."""
        self._run_id = run_id or uuid.uuid4().hex
        self._clocks = Clocks()
        self._vram = VramTracker()
        self._loads = ModelLoads(self._tracer, self._instruments, self._vram)
        self._energy = EnergyMeter()
        self._watchdog = Watchdog(self.settings.deadline)
        self._deferral = Deferral()
        for request in self._running.values():
            request.recording.abandon()
        self._running.clear()
        self._gpus.forget()

    def request(self, definition: RequestDefinition, call: Call) -> Any:
        """Run a call as a request. Inside another request it is just run.

        A request that was sampled out is counted and timed on the host; its stages are not looked at.

        Args:
            definition: how it is recorded.
            call: what to run.
        """
        request = None if self._closed or inside_request() else self._start(definition, call)
        if request is None:
            return call.run()
        recording_token = set_current(request.recording)
        context_token = otel_context.attach(trace.set_span_in_context(request.span))
        error: BaseException | None = None
        profile = self._profile(request)
        try:
            with self._vram.request(request.device):
                result = call.run() if profile is None else profile.run(definition.span, call.run)
            self._describe(request.root, lambda: definition.attributes_after(call, result))
            if self.settings.capture_content:
                self._describe(request.root, lambda: definition.content_after(result))
            if self.settings.songs is not None:
                request.root.songs = tuple(never_raises(definition.files_after)(result) or ())
            error = never_raises(definition.failure)(result)
        except BaseException as raised:
            error = raised
            raise
        finally:
            if profile is not None:
                never_raises(profile.stop)()
            otel_context.detach(context_token)
            reset_current(recording_token)
            self._finish(request, error)
        return result

    def stage(self, definition: StageDefinition, call: Call) -> Any:
        """Run a call as a stage of the current request; without one, or below the detail level, just run it.

        Args:
            definition: how it is recorded.
            call: what to run.
        """
        recording = current_recording()
        if recording is None or recording.detail < definition.detail:
            return call.run()
        device = None if definition.device is None else never_raises(definition.device)(call)
        stage = self._begin(recording, definition, device)
        if stage is None:
            return call.run()
        if definition.is_lm_phase:
            stage.phase = PhaseRecord(constrained_ns=0 if definition.times_grammar else None)
        before, after = definition.attributes_before, definition.attributes_after
        try:
            if before is not None:
                self._describe(stage, lambda: before(call))
            in_range = recording.run_in_range
            with nullcontext() if stage.device is None else self._vram.request(stage.device):
                result = call.run() if in_range is None else in_range(definition.span, call.run)
        except BaseException as error:
            self._end(recording, stage, error)
            raise
        self._end(recording, stage, never_raises(definition.failure)(result))
        if after is not None:
            self._describe(stage, lambda: after(call, stage, result))
        return result

    def begin(self, definition: StageDefinition, attributes: Callable[[], Attributes] | None = None) -> None:
        """Begin a stage that another patch ends, where no single call covers it; without effect while it is open.

        Args:
            definition: how it is recorded; what it reads from a call is not used.
            attributes: known by now.
        """
        recording = current_recording()
        if recording is None or recording.detail < definition.detail or recording.running(definition.span) is not None:
            return
        stage = self._begin(recording, definition)
        if stage is not None and attributes is not None:
            self._describe(stage, attributes)

    def end(
        self,
        name: str,
        attributes: Callable[[Stage], Attributes] | None = None,
        error: BaseException | None = None,
    ) -> None:
        """End a stage that ``begin`` began, and whatever is open inside it; without effect when it is not open.

        Args:
            name: name of the span.
            attributes: known by now.
            error: what ended it.
        """
        recording = current_recording()
        stage = None if recording is None else recording.running(name)
        if recording is None or stage is None:
            return
        self._end(recording, stage, error)
        if attributes is not None:
            self._describe(stage, lambda: attributes(stage))

    def load(self, definition: LoadDefinition, call: Call) -> Any:
        """Run a model's loading in a span of its own, below whatever span is current.

        Args:
            definition: how it is recorded.
            call: what to run.
        """
        load = None if self._closed else never_raises(definition.load)(call)
        if load is None:
            return call.run()
        self._gpus.add(load.device)
        return self._loads.run(load, definition, call, self._common())

    def finish(self, timeout: float) -> None:
        """End every request that is still running, marked as truncated, and emit everything that has ended.

        Args:
            timeout: seconds, at most.
        """
        for request in list(self._running.values()):
            request.root.attributes[semconv.TRUNCATED] = True
            self._finish(request, None)
        self.flush(timeout)

    def flush(self, timeout: float) -> None:
        """Wait until the telemetry of every request that has ended was emitted.

        Args:
            timeout: seconds, at most.
        """
        if left := self._deferral.drain(timeout):
            logger.warning(
                "not traced within %g s, so that spans may be missing: %d of the last requests", timeout, left
            )

    def close(self) -> None:
        """Trace nothing from now on, also for callers that kept a wrapped function, and observe no hardware."""
        self._closed = True
        self._gpus.forget()

    def adopt(self, name: str, start_ns: int, attributes: Attributes, parent: Context, kind: SpanKind) -> bool:
        """Emit a span that a library below the engine measured by itself and that ends now.

        Args:
            name: as the library has it.
            start_ns: Unix nanoseconds.
            attributes: as the library has them.
            parent: context of the parent span.
            kind: as the library has it.

        Returns:
            True: no other thread emits it.
        """
        self._tracer.start_span(
            name, context=parent, start_time=start_ns, attributes={**self._common(), **attributes}, kind=kind
        ).end()
        return True

    def _common(self) -> dict[str, AttributeValue]:
        return {semconv.RUN_ID: self._run_id, **current_annotations()}

    @never_raises
    def _start(self, definition: RequestDefinition, call: Call) -> _Request:
        start = definition.start(call, self.settings.capture_content)
        self._gpus.add(start.device)
        self._energy.begin(start.device)
        common = self._common()
        host = HostClock()
        root = Stage(definition.span, host_mark(), device_clock=False, attributes=dict(start.attributes))
        # The root's own mark, so that its span is as long as what the metrics record.
        started_ns = host.time_of(root.start)
        span = self._tracer.start_span(
            definition.span, start_time=started_ns, attributes={**common, **start.attributes}
        )
        recording: RequestRecording | Unrecorded = Unrecorded()
        if span.is_recording():
            recording = RequestRecording(
                root,
                clock=self._clocks.for_device(start.device, host),
                device=start.device,
                detail=self.settings.detail,
                vram=self._vram,
            )
        request = _Request(start.device, root, span, recording, Scrubber(start.user_texts), common)
        self._running[id(request)] = request
        self._watchdog.begin(id(request), recording, partial(self._hangs, request))
        self._count_active(request, 1)
        return request

    @never_raises
    def _profile(self, request: _Request) -> Profile | None:
        """The profile of a request that asks for one."""
        begun = self._profiler.begin(trace.format_trace_id(request.span.get_span_context().trace_id))
        if begun is None:
            return None
        profile, place = begun
        request.root.attributes[semconv.PROFILE_FILE] = place
        if isinstance(request.recording, RequestRecording):
            request.recording.run_in_range = profile.run
        return profile

    @never_raises
    def _finish(self, request: _Request, error: BaseException | None) -> None:
        # Finished by the thread that removes it: its own, or shutdown.
        if self._running.pop(id(request), None) is None:
            return
        self._watchdog.end(id(request))
        self._count_active(request, -1)
        shared = self._energy.end(request.device)
        recording = request.recording
        if isinstance(recording, Unrecorded):
            recording.abandon()
            self._count_unrecorded(request, error)
            request.span.end()
            return
        # What the end could not read is missing on the root, and is no reason to lose the trace.
        never_raises(recording.end)(recording.root, error)
        recording.energy, recording.energy_shared = self._energy.readings(request.device), shared
        recording.outlasted = not recording.reached
        emit = partial(self._emit, recording, request)
        if recording.error is not None and recording.reached:
            # An exception's traceback holds tensors, and who runs out of memory wants it back at once.
            emit()
        elif not self._deferral.add(lambda: recording.reached, emit):
            # Ending the span would wait for the slow span processor.
            self._count_unrecorded(request, error)
            self._instruments.record(semconv.TRACES_DROPPED, 1, {})

    def _hangs(self, request: _Request, snapshot: Attributes) -> None:
        """Emit a snapshot of a request past its deadline, from the thread that made it."""
        context = trace.set_span_in_context(request.span, Context())
        attributes = {**request.common, **snapshot, semconv.CLOCK: HOST}
        self._tracer.start_span(semconv.REQUEST_HANG, context=context, attributes=attributes).end()
        if is_measured(request.common):
            self._instruments.record(semconv.HANGS, 1, {**metric_attributes(request.root, ""), **snapshot})

    def _emit(self, recording: RequestRecording, request: _Request) -> None:
        self._emitter.emit(recording, request.span, request.scrub, request.common)
        if (limit := self._vram.limit(recording.device)) is not None:
            self._instruments.record(semconv.VRAM_LIMIT, limit, {})

    def _count_unrecorded(self, request: _Request, error: BaseException | None) -> None:
        root = request.root
        root.error = error
        if is_measured(request.common):
            self._emitter.count(root, (time.perf_counter_ns() - root.start.host_ns) / 1e9, request.span)
            if is_out_of_memory(error):
                attributes = metric_attributes(root, "") | {semconv.STAGE: getattr(error, "stage", root.name)}
                self._instruments.record(semconv.OUT_OF_MEMORY, 1, attributes)

    def _count_active(self, request: _Request, change: int) -> None:
        self._instruments.record(semconv.REQUESTS_ACTIVE, change, metric_attributes(request.root, ""))

    @never_raises
    def _begin(
        self, recording: RequestRecording, definition: StageDefinition, device: torch.device | None = None
    ) -> Stage:
        if device is not None:
            self._gpus.add(device)
        return recording.begin(
            definition.span,
            detail=definition.detail,
            device_clock=definition.device_clock,
            tracks_memory=definition.tracks_memory,
            device=device,
        )

    @never_raises
    def _end(self, recording: RequestRecording, stage: Stage, error: BaseException | None) -> None:
        recording.end(stage, error)

    @never_raises
    def _describe(self, stage: Stage, attributes: Callable[[], Attributes]) -> None:
        stage.attributes.update(attributes())
