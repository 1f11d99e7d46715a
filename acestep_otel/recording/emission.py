"""From a finished recording to spans and metrics.

Runs once per request, after the request's own synchronisation: takes the tree with its times (``timed_stage``), emits
its spans with explicit times and records the metrics inside them, so that exemplars point at them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, Tracer

from acestep_otel import semconv
from acestep_otel.recording.clock import HOST
from acestep_otel.recording.instruments import Instruments
from acestep_otel.recording.outcomes import error_type, is_out_of_memory, outcome_of, record_outcome
from acestep_otel.recording.phase import GapSummary, PhaseTimes
from acestep_otel.recording.redaction import Scrubber
from acestep_otel.recording.song_files import song_attributes
from acestep_otel.recording.stage_work import (
    PeaksByDevice,
    count_work,
    own_stage,
    peak_attributes,
    record_work,
    work_attributes,
)
from acestep_otel.recording.stall_watch import Scene, StallWatch
from acestep_otel.recording.timed_stage import TimedStage, resolve
from acestep_otel.recording.trace_tree import AttributeValue, RequestRecording, Stage, is_measured
from acestep_otel.roofline.peaks import Peaks
from acestep_otel.settings import Detail


class Emitter:
    """Emits one recording."""

    def __init__(self, tracer: Tracer, instruments: Instruments, detail: Detail, songs: str | None = None) -> None:
        self._tracer = tracer
        self._songs = songs
        self._instruments = instruments
        self._detail = detail
        self._peaks = PeaksByDevice()
        self._stalls = StallWatch(instruments)

    def emit(
        self, recording: RequestRecording, root: Span, scrub: Scrubber, common: Mapping[str, AttributeValue]
    ) -> None:
        """End the root span and create everything below it.

        Args:
            recording: the finished tree.
            root: the live span of its root, started when the request was.
            scrub: removes what the user wrote from exception messages.
            common: attributes that every span of the tree carries (run id, warm-up).
        """
        tree = resolve(recording)
        peaks = self._peaks.of(recording.device) if tree.parts else None
        run = _Emission(self._tracer, self._instruments, self._detail, recording, scrub, common, peaks, self._stalls)
        device = peak_attributes(peaks, recording.root.attributes.get(semconv.DTYPE, ""))
        for name, value in chain(common.items(), run.attributes_of(tree), device, run.root_energy(tree)):
            root.set_attribute(name, value)
        for name, reasons in _finish_reasons(recording.root).items():
            root.set_attribute(name, reasons)
        if self._songs is not None:
            for name, values in song_attributes(recording.root.songs, self._songs):
                root.set_attribute(name, values)
        root.set_attribute(semconv.LATENCY_E2E, tree.seconds)
        run.children_of(tree, root)
        if run.is_measured:
            self.count(recording.root, tree.seconds, root)
        _close(root, tree, scrub)

    def count(self, request: Stage, seconds: float, span: Span) -> None:
        """Record the metrics of a whole request, which every request has but a warm-up, sampled or not.

        Args:
            request: its root, with what is known about it.
            seconds: it took.
            span: its span, which exemplars point to.
        """
        record = self._instruments.record
        context = trace.set_span_in_context(span, Context())
        attributes = metric_attributes(request, request.attributes.get(semconv.REQUEST_MODEL, ""))
        record(semconv.REQUEST_DURATION, seconds, attributes, context)
        record(semconv.REQUESTS, 1, {**attributes, semconv.OUTCOME: outcome_of(request.error)}, context)
        known = {semconv.BATCH_SIZE, semconv.AUDIO_DURATION} <= request.attributes.keys()
        if request.error is None and known:
            songs = int(request.attributes[semconv.BATCH_SIZE])
            audio_seconds = songs * float(request.attributes[semconv.AUDIO_DURATION])
            record(semconv.AUDIO_SECONDS, audio_seconds, attributes, context)
            if audio_seconds > 0:
                record(semconv.AUDIO_COMPUTE_DURATION, seconds / audio_seconds, attributes, context)


class _Emission:
    """The walk over one tree."""

    def __init__(
        self,
        tracer: Tracer,
        instruments: Instruments,
        detail: Detail,
        recording: RequestRecording,
        scrub: Scrubber,
        common: Mapping[str, AttributeValue],
        peaks: Peaks | None,
        stalls: StallWatch,
    ) -> None:
        self._tracer = tracer
        self._instruments = instruments
        self._detail = detail
        self._peaks = peaks
        self._stalls = stalls
        self._device = str(recording.device)
        self._energy = recording.energy
        self._energy_shared = recording.energy_shared
        self._clock_name = recording.clock.name
        self._scrub = scrub
        self._common = common
        self._model = recording.root.attributes.get(semconv.REQUEST_MODEL, "")
        self.is_measured = is_measured(common)
        self._scene = Scene(self._device, str(self._model), self._energy, self.is_measured)

    def children_of(self, parent: TimedStage, parent_span: Span) -> None:
        """Emit the subtrees below a span."""
        context = trace.set_span_in_context(parent_span, Context())
        for child in parent.children:
            span = self._tracer.start_span(
                child.stage.name,
                context=context,
                start_time=child.start_ns,
                attributes={**self._common, **dict(self.attributes_of(child)), **_finish_reasons(child.stage)},
            )
            self.children_of(child, span)
            self._stalls.look_at(child, parent, self._scene, span)
            if self.is_measured:
                self._stage_metrics(child, span)
            if child.phase is not None and self._detail >= Detail.TOKEN:
                self._token_windows(child.phase, span)
            self._stalls.left(child.stage, self._device)
            _close(span, child, self._scrub)

    def attributes_of(self, node: TimedStage) -> Iterator[tuple[str, AttributeValue]]:
        """Everything that is known about a stage."""
        stage = node.stage
        yield from stage.attributes.items()
        assert stage.end is not None
        on_device = None not in (stage.start.event, stage.end.event)
        yield semconv.CLOCK, self._clock_name if on_device else HOST
        if stage.device_clock:
            yield semconv.HOST_DURATION, node.host_seconds
        if stage.vram is not None:
            yield semconv.VRAM_ALLOCATED, stage.vram.allocated
            yield semconv.VRAM_RESERVED, stage.vram.reserved
        if stage.peak is not None:
            yield semconv.VRAM_PEAK_ALLOCATED, stage.peak.allocated
            yield semconv.VRAM_PEAK_RESERVED, stage.peak.reserved
            yield semconv.VRAM_SHARED, stage.peak.shared
        if node.phase is not None:
            yield from _phase_attributes(node, node.phase)
        if stage.name == semconv.LM:
            yield from _planner_attributes(node)
        if (joules := self._joules(node)) is not None:
            yield semconv.ENERGY, joules
        if (roofline := node.roofline(self._peaks)) is not None:
            yield from work_attributes(roofline, roofline.bound(waits_for_host=node.waits_for_host))

    def _joules(self, node: TimedStage) -> float | None:
        """Energy at the times of a span; ``None`` for one that is too short."""
        return None if self._energy is None else self._energy.between(node.start_ns, node.end_ns)

    def root_energy(self, tree: TimedStage) -> Iterator[tuple[str, AttributeValue]]:
        """What the energy of this request is worth, and per minute of music."""
        joules = self._joules(tree)
        if joules is None or self._energy is None or self._energy.resolution is None:
            return
        yield semconv.ENERGY_RESOLUTION, self._energy.resolution
        yield semconv.ENERGY_SHARED, self._energy_shared
        attributes = tree.stage.attributes
        minutes = float(attributes.get(semconv.AUDIO_DURATION, 0.0)) * int(attributes.get(semconv.BATCH_SIZE, 0)) / 60
        if self._energy_shared:
            return
        labels = metric_attributes(tree.stage, self._model)
        if self.is_measured:
            self._instruments.record(semconv.ENERGY_USED, joules, labels)
        if minutes > 0:
            yield semconv.ENERGY_PER_MINUTE, joules / 3600 / minutes
            if self.is_measured:
                self._instruments.record(semconv.AUDIO_ENERGY, joules / minutes, labels)

    def _token_windows(self, phase: PhaseTimes, phase_span: Span) -> None:
        context = trace.set_span_in_context(phase_span, Context())
        for first, count, start_ns, end_ns in phase.windows():
            self._tracer.start_span(
                semconv.LM_TOKENS,
                context=context,
                start_time=start_ns,
                attributes={
                    **self._common,
                    semconv.LM_WINDOW_FIRST: first,
                    semconv.LM_WINDOW_TOKENS: count,
                    semconv.CLOCK: self._clock_name,
                },
            ).end(end_time=end_ns)

    def _stage_metrics(self, node: TimedStage, span: Span) -> None:
        stage, record = node.stage, self._instruments.record
        context = trace.set_span_in_context(span, Context())
        attributes = metric_attributes(stage, self._model)
        if (joules := self._joules(node)) is not None and not self._energy_shared:
            record(semconv.ENERGY_USED, joules, attributes, context)
        if own_stage(stage):
            count_work(self._instruments, node.own_parts, attributes, context)
        if (roofline := node.roofline(self._peaks)) is not None:
            bound = roofline.bound(waits_for_host=node.waits_for_host)
            record_work(self._instruments, roofline, bound, attributes, context)
        if stage.name == semconv.DIT_STEP:
            record(semconv.DIT_STEP_DURATION, node.seconds, attributes, context)
            return
        if stage.name == semconv.VAE_TILE:
            record(semconv.VAE_TILE_DURATION, node.seconds, attributes, context)
            return
        record(semconv.STAGE_DURATION, node.seconds, attributes, context)
        if is_out_of_memory(stage.error):
            record(semconv.OUT_OF_MEMORY, 1, attributes, context)
        if stage.peak is not None:
            for kind, value in (("allocated", stage.peak.allocated), ("reserved", stage.peak.reserved)):
                record(semconv.VRAM_PEAK, value, {**attributes, semconv.VRAM_KIND: kind}, context)
        if node.phase is not None:
            self._phase_metrics(node, node.phase, attributes, context)

    def _phase_metrics(
        self, node: TimedStage, phase: PhaseTimes, attributes: dict[str, AttributeValue], context: Context
    ) -> None:
        record = self._instruments.record
        if phase.passes_ns:
            first_token = (phase.passes_ns[0] - node.start_ns) / 1e9
            record(semconv.TIME_TO_FIRST_TOKEN, first_token, attributes, context)
        if phase.seconds_per_token is not None:
            record(semconv.TIME_PER_OUTPUT_TOKEN, phase.seconds_per_token, attributes, context)
        kinds = {
            "prompt": semconv.USAGE_INPUT_TOKENS,
            "sampled": semconv.LM_SAMPLED_TOKENS,
            "forced": semconv.LM_FORCED_TOKENS,
            "unconditional": semconv.LM_UNCONDITIONAL_TOKENS,
        }
        for kind, name in kinds.items():
            if count := node.stage.attributes.get(name, 0):
                record(semconv.LM_TOKENS_COUNT, float(count), {**attributes, semconv.TOKEN_KIND: kind}, context)


def metric_attributes(stage: Stage, model: AttributeValue) -> dict[str, AttributeValue]:
    """What a stage's metrics may carry; each metric takes those that its definition lists.

    Args:
        stage: a stage.
        model: of its request, for a stage without a model of its own.
    """
    attributes: dict[str, AttributeValue] = {
        semconv.OPERATION_NAME: "generate_content",
        semconv.PROVIDER_NAME: "ace_step",
        semconv.STAGE: semconv.stage_of(stage.name),
        semconv.REQUEST_MODEL: stage.attributes.get(semconv.REQUEST_MODEL, model),
    }
    if (failure := error_type(stage.error)) is not None:
        attributes[semconv.ERROR_TYPE] = failure
    return attributes


def _finish_reasons(stage: Stage) -> dict[str, tuple[str, ...]]:
    """Why each song or text of a stage ended: of a request by its own attributes, of the planner by its last phase."""
    reasons = stage.finish_reasons
    if stage.error is None and semconv.LYRICS_COMPLETE in stage.attributes:
        reasons = ("stop" if stage.attributes[semconv.LYRICS_COMPLETE] else "length",)
    elif stage.error is None and stage.name == semconv.GENERATE_MUSIC and semconv.AUDIO_DURATION in stage.attributes:
        reasons = ("stop",) * int(stage.attributes.get(semconv.BATCH_SIZE, 1))
    elif stage.name == semconv.LM and stage.children:
        reasons = stage.children[-1].finish_reasons
    return {semconv.RESPONSE_FINISH_REASONS: reasons} if reasons else {}


def _phase_attributes(node: TimedStage, phase: PhaseTimes) -> Iterator[tuple[str, AttributeValue]]:
    # What was not measured is absent: zero would say that it took no time.
    if phase.constrained is not None:
        yield semconv.LM_CONSTRAINED_DECODING_DURATION, phase.constrained
    if phase.prefill is not None:
        yield semconv.LM_PREFILL_DURATION, phase.prefill
        yield semconv.LATENCY_PREFILL, phase.prefill
    if phase.decode is not None:
        yield semconv.LM_DECODE_DURATION, phase.decode
        yield semconv.LATENCY_DECODE, phase.decode
    if (guidance := _guidance_duration(node)) is not None:
        yield semconv.LM_CFG_DURATION, guidance
    if phase.passes_ns:
        first_token = (phase.passes_ns[0] - node.start_ns) / 1e9
        yield semconv.LM_TIME_TO_FIRST_TOKEN, first_token
        yield semconv.LATENCY_TIME_TO_FIRST_TOKEN, first_token
    sampled = int(node.stage.attributes.get(semconv.LM_SAMPLED_TOKENS, 0))
    if phase.decode and sampled:
        yield semconv.LM_TOKENS_PER_SECOND, sampled * phase.decode_passes / len(phase.passes_ns) / phase.decode
    if (gaps := GapSummary.of(phase.gaps)) is not None:
        yield semconv.LM_TOKEN_GAP_P50, gaps.p50
        yield semconv.LM_TOKEN_GAP_P95, gaps.p95
        yield semconv.LM_TOKEN_GAP_MAX, gaps.maximum
        yield semconv.LM_TOKEN_GAP_MAX_INDEX, gaps.maximum_index


def _guidance_duration(node: TimedStage) -> float | None:
    """Seconds that the unconditional rows cost in a phase; ``None`` when they ran, or may have, uncalibrated."""
    if node.phase is None:
        return 0.0
    attributes = node.stage.attributes
    if attributes.get(semconv.LM_UNCONDITIONAL_TOKENS) == 0:
        return 0.0
    if semconv.LM_CFG_SHARE not in attributes:
        return None
    decode_share = float(attributes[semconv.LM_CFG_SHARE])
    prefill_share = float(attributes[semconv.LM_CFG_PREFILL_SHARE])
    return decode_share * (node.phase.decode or 0.0) + prefill_share * (node.phase.prefill or 0.0)


def _planner_attributes(node: TimedStage) -> Iterator[tuple[str, AttributeValue]]:
    """The three rows of the breakdown below the planner's total, which they sum to."""
    phases = [child.phase for child in node.children if child.phase is not None]
    measured = [phase.constrained for phase in phases if phase.constrained is not None]
    guidance = [_guidance_duration(child) for child in node.children]
    constrained, calibrated = sum(measured), sum(seconds for seconds in guidance if seconds is not None)
    if measured:
        yield semconv.LM_CONSTRAINED_DECODING_DURATION, constrained
    if phases and None not in guidance:
        yield semconv.LM_CFG_DURATION, calibrated
    yield semconv.LM_TOKEN_GENERATION_DURATION, max(0.0, node.seconds - constrained - calibrated)


def _close(span: Span, node: TimedStage, scrub: Scrubber) -> None:
    if node.stage.error is not None:
        record_outcome(span, node.stage.error, scrub, node.end_ns)
    span.end(end_time=node.end_ns)
