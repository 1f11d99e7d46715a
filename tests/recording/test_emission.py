"""From a recording to spans and metrics: names, values, nesting, failure."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from acestep.errors import OutOfMemory
from acestep_otel import semconv
from acestep_otel.recording import stage_work
from acestep_otel.recording.clock import CUDA_EVENT, HostClock, Mark
from acestep_otel.recording.emission import Emitter
from acestep_otel.recording.instruments import Instruments
from acestep_otel.recording.phase import PhaseRecord
from acestep_otel.recording.redaction import Scrubber
from acestep_otel.recording.trace_tree import RequestRecording, Stage
from acestep_otel.recording.vram import VramPeak, VramReading, VramTracker
from acestep_otel.roofline.peaks import Peaks
from acestep_otel.roofline.work import Pass, Work
from acestep_otel.settings import Detail

CPU = torch.device("cpu")
MS = 1_000_000


class Bench:
    """An emitter with an in-memory exporter and metric reader."""

    def __init__(self, detail: Detail = Detail.STEP, device: torch.device = CPU) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.tracer = provider.get_tracer("test")
        self.emitter = Emitter(self.tracer, Instruments(MeterProvider([self.reader]).get_meter("test")), detail)
        self.detail, self.device = detail, device

    def emit(self, build, scrub=(), clock=HostClock, **common):
        request = Stage(semconv.GENERATE_MUSIC, Mark(0), device_clock=False, end=Mark(1_000 * MS))
        request.attributes[semconv.REQUEST_MODEL] = "acestep-v15-tiny"
        recording = RequestRecording(request, clock=clock(), device=self.device, detail=self.detail, vram=VramTracker())
        build(request)
        root = self.tracer.start_span(semconv.GENERATE_MUSIC, start_time=recording.clock.resolve([Mark(0)])[0])
        self.emitter.emit(recording, root, Scrubber(scrub), {semconv.RUN_ID: "run", **common})
        return {span.name: span for span in self.exporter.get_finished_spans()}

    def metrics(self):
        data = self.reader.get_metrics_data()
        return {
            metric.name: list(metric.data.data_points)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


class EventClock(HostClock):
    """A CUDA device's by its name; the test gives marks their events."""

    name = CUDA_EVENT


def add(parent: Stage, name: str, start: int, end: int, **fields) -> Stage:
    stage = Stage(name, Mark(start), device_clock=fields.pop("device_clock", True), end=Mark(end), **fields)
    parent.children.append(stage)
    return stage


def planner(root: Stage, *, share: float | None = 0.25, unconditional: int = 30) -> None:
    lm = add(root, semconv.LM, 10 * MS, 500 * MS, device_clock=False)
    cot = add(lm, semconv.LM_COT, 10 * MS, 100 * MS, device_clock=False)
    cot.phase = PhaseRecord([(Mark(15 * MS), Mark(20 * MS))], [Mark(30 * MS), Mark(40 * MS)], constrained_ns=5 * MS)
    cot.attributes[semconv.LM_UNCONDITIONAL_TOKENS] = 0
    codes = add(lm, semconv.LM_CODES, 100 * MS, 480 * MS, device_clock=False)
    codes.phase = PhaseRecord([(Mark(100 * MS), Mark(120 * MS))], [Mark((130 + 10 * i) * MS) for i in range(31)])
    codes.attributes |= {semconv.LM_SAMPLED_TOKENS: 31, semconv.LM_UNCONDITIONAL_TOKENS: unconditional}
    if share is not None:
        codes.attributes |= {semconv.LM_CFG_SHARE: share, semconv.LM_CFG_PREFILL_SHARE: 0.5}


def seconds(span) -> float:
    return (span.end_time - span.start_time) / 1e9


def test_the_tree_is_emitted_under_the_root_with_the_times_of_its_marks():
    def build(root):
        dit = add(root, semconv.DIT, 100 * MS, 400 * MS)
        add(dit, semconv.DIT_STEP, 110 * MS, 200 * MS, attributes={semconv.DIT_STEP_INDEX: 0})

    spans = Bench().emit(build)
    assert set(spans) == {semconv.GENERATE_MUSIC, semconv.DIT, semconv.DIT_STEP}
    root, dit, step = spans[semconv.GENERATE_MUSIC], spans[semconv.DIT], spans[semconv.DIT_STEP]
    assert (root.parent, dit.parent.span_id, step.parent.span_id) == (
        None,
        root.context.span_id,
        dit.context.span_id,
    )
    assert (seconds(root), seconds(dit), seconds(step)) == (1.0, 0.3, 0.09)
    assert dit.start_time - root.start_time == 100 * MS
    assert step.attributes[semconv.DIT_STEP_INDEX] == 0
    assert step.attributes[semconv.CLOCK] == "host"
    assert all(span.attributes[semconv.RUN_ID] == "run" for span in spans.values())


@pytest.mark.parametrize("unread", ["start", "end", None])
def test_a_span_names_the_clock_that_its_times_were_read_from(unread):
    def build(root):
        stage = add(root, semconv.DIT, 10 * MS, 20 * MS)
        for side in {"start", "end"} - {unread}:
            getattr(stage, side).event = object()

    spans = Bench().emit(build, clock=EventClock)
    assert spans[semconv.DIT].attributes[semconv.CLOCK] == ("host" if unread else "cuda_event")
    assert spans[semconv.GENERATE_MUSIC].attributes[semconv.CLOCK] == "host"


@given(st.lists(st.tuples(st.integers(-50, 1_100), st.integers(-50, 1_100)), max_size=8))
def test_children_nest_and_never_overlap_whatever_the_marks_say(times):
    def build(root):
        for start, end in times:
            add(root, semconv.CONDITION, start * MS, end * MS)

    bench = Bench()
    bench.emit(build)
    spans = bench.exporter.get_finished_spans()
    root = next(span for span in spans if span.parent is None)
    children = [span for span in spans if span.parent is not None]
    assert len(children) == len(times)
    cursor = root.start_time
    for child in children:
        assert cursor <= child.start_time <= child.end_time <= root.end_time
        cursor = child.end_time
    assert sum(seconds(child) for child in children) <= seconds(root)


def test_the_planner_s_three_rows_sum_to_its_total():
    spans = Bench().emit(planner)
    lm = spans[semconv.LM].attributes
    assert lm[semconv.LM_CONSTRAINED_DECODING_DURATION] == pytest.approx(0.005)
    # 25 % of 300 ms of decoding and half of 20 ms of prefill.
    assert lm[semconv.LM_CFG_DURATION] == pytest.approx(0.25 * 0.3 + 0.5 * 0.02)
    rows = (
        lm[semconv.LM_TOKEN_GENERATION_DURATION],
        lm[semconv.LM_CONSTRAINED_DECODING_DURATION],
        lm[semconv.LM_CFG_DURATION],
    )
    assert sum(rows) == pytest.approx(seconds(spans[semconv.LM]))


def test_guidance_that_was_not_calibrated_is_absent_not_zero():
    lm = Bench().emit(lambda root: planner(root, share=None))[semconv.LM].attributes
    assert semconv.LM_CFG_DURATION not in lm


def test_what_was_not_measured_is_absent_not_zero():
    def unmeasured(root):
        phase = add(add(root, semconv.LM, 10 * MS, 500 * MS), semconv.LM_CODES, 10 * MS, 500 * MS)
        phase.phase = PhaseRecord(constrained_ns=None)

    spans = Bench().emit(unmeasured)
    for name in (semconv.LM, semconv.LM_CODES):
        for figure in (
            semconv.LM_CONSTRAINED_DECODING_DURATION,
            semconv.LM_CFG_DURATION,
            semconv.LM_PREFILL_DURATION,
            semconv.LM_DECODE_DURATION,
        ):
            assert figure not in spans[name].attributes


def test_guidance_that_was_off_is_zero():
    lm = Bench().emit(lambda root: planner(root, share=None, unconditional=0))[semconv.LM].attributes
    assert lm[semconv.LM_CFG_DURATION] == 0.0


def test_a_phase_reports_first_token_prefill_decode_rate_and_gaps():
    codes = Bench().emit(planner)[semconv.LM_CODES].attributes
    assert codes[semconv.LM_TIME_TO_FIRST_TOKEN] == pytest.approx(0.03)
    assert codes[semconv.LM_PREFILL_DURATION] == pytest.approx(0.02)
    assert codes[semconv.LM_DECODE_DURATION] == pytest.approx(0.3)
    assert codes[semconv.LM_TOKENS_PER_SECOND] == pytest.approx(100)
    assert codes[semconv.LM_TOKEN_GAP_P50] == pytest.approx(0.01)


def test_token_windows_appear_at_detail_token_only():
    assert semconv.LM_TOKENS not in Bench(Detail.STEP).emit(planner)
    bench = Bench(Detail.TOKEN)
    bench.emit(planner)
    windows = [span for span in bench.exporter.get_finished_spans() if span.name == semconv.LM_TOKENS]
    assert [span.attributes[semconv.LM_WINDOW_TOKENS] for span in windows] == [1, 30]


def test_failure_closes_spans_with_status_exception_and_what_was_measured():
    cause = OutOfMemory("out of memory rendering my secret song", stage="dit")

    def build(root):
        root.error = cause
        dit = add(root, semconv.DIT, 100 * MS, 400 * MS, error=cause)
        add(dit, semconv.DIT_STEP, 100 * MS, 300 * MS)
        add(dit, semconv.DIT_STEP, 300 * MS, 400 * MS, error=cause)

    bench = Bench()
    bench.emit(build, scrub=["my secret song"])
    by_status = [(span.name, span.status.status_code) for span in bench.exporter.get_finished_spans()]
    assert by_status == [
        (semconv.DIT_STEP, StatusCode.UNSET),
        (semconv.DIT_STEP, StatusCode.ERROR),
        (semconv.DIT, StatusCode.ERROR),
        (semconv.GENERATE_MUSIC, StatusCode.ERROR),
    ]
    root = bench.exporter.get_finished_spans()[-1]
    assert root.attributes[semconv.ERROR_TYPE] == "OutOfMemory"
    (event,) = root.events
    assert event.attributes["exception.message"] == "out of memory rendering [redacted]"
    assert "secret" not in str(event.attributes)
    metrics = bench.metrics()
    assert metrics[semconv.OUT_OF_MEMORY.name][0].value == 1
    assert metrics[semconv.REQUESTS.name][0].attributes[semconv.OUTCOME] == "OutOfMemory"


def test_memory_peaks_are_attributes_and_gauges_and_absent_without_a_counter():
    def build(root):
        add(root, semconv.DIT, 0, 100 * MS, peak=VramPeak(allocated=5_000, reserved=8_000, shared=False))
        add(root, semconv.VAE_DECODE, 100 * MS, 200 * MS)

    bench = Bench()
    spans = bench.emit(build)
    assert spans[semconv.DIT].attributes[semconv.VRAM_PEAK_RESERVED] == 8_000
    assert semconv.VRAM_PEAK_RESERVED not in spans[semconv.VAE_DECODE].attributes
    points = {point.attributes[semconv.VRAM_KIND]: point for point in bench.metrics()[semconv.VRAM_PEAK.name]}
    assert (points["allocated"].value, points["reserved"].value) == (5_000, 8_000)
    assert points["allocated"].attributes[semconv.STAGE] == "dit"


def test_the_cost_of_a_second_of_audio_is_over_all_songs_and_leads_to_the_request():
    def build(root):
        root.attributes |= {semconv.AUDIO_DURATION: 10.0, semconv.BATCH_SIZE: 4}

    bench = Bench()
    spans = bench.emit(build)
    (point,) = bench.metrics()[semconv.AUDIO_COMPUTE_DURATION.name]
    assert point.sum == pytest.approx(1.0 / 40)
    assert point.exemplars[0].span_id == spans[semconv.GENERATE_MUSIC].context.span_id


def test_a_request_that_made_no_audio_has_no_such_cost():
    def fails(root):
        root.attributes |= {semconv.AUDIO_DURATION: 10.0, semconv.BATCH_SIZE: 4}
        root.error = OutOfMemory("no room", stage="dit")

    for build in (fails, lambda root: root.attributes.update({semconv.AUDIO_DURATION: 10.0, semconv.BATCH_SIZE: 0})):
        bench = Bench()
        bench.emit(build)
        assert semconv.AUDIO_COMPUTE_DURATION.name not in bench.metrics()


def test_seconds_of_audio_are_not_counted_where_the_number_of_songs_is_unknown():
    bench = Bench()
    bench.emit(lambda root: root.attributes.update({semconv.AUDIO_DURATION: 10.0}))
    recorded = bench.metrics()
    assert semconv.AUDIO_SECONDS.name not in recorded
    assert semconv.REQUESTS.name in recorded


def test_readings_of_vram_are_on_every_span_that_has_one():
    bench = Bench()

    def build(root):
        dit = add(root, semconv.DIT, 0, 100 * MS)
        add(dit, semconv.DIT_STEP, 0, 50 * MS, vram=VramReading(300, 900, VramPeak(700, 900, False)))

    spans = bench.emit(build)
    step, dit = spans[semconv.DIT_STEP].attributes, spans[semconv.DIT].attributes
    assert (step[semconv.VRAM_ALLOCATED], step[semconv.VRAM_RESERVED]) == (300, 900)
    assert semconv.VRAM_PEAK_ALLOCATED not in step
    assert semconv.VRAM_ALLOCATED not in dit


def test_a_warm_up_leaves_spans_and_no_metrics():
    """A histogram cannot be cleaned of it afterwards."""
    bench = Bench()
    spans = bench.emit(planner, **{semconv.WARMUP: True})
    assert spans[semconv.LM_COT].attributes[semconv.WARMUP] is True
    assert bench.reader.get_metrics_data() is None


def test_metrics_have_the_declared_units_buckets_and_attributes_only():
    bench = Bench()
    bench.emit(planner)
    data = bench.reader.get_metrics_data()
    seen = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics]
    assert {m.name for m in seen} >= {
        semconv.REQUEST_DURATION.name,
        semconv.TIME_TO_FIRST_TOKEN.name,
        semconv.TIME_PER_OUTPUT_TOKEN.name,
        semconv.STAGE_DURATION.name,
    }
    for metric in seen:
        definition = semconv.METRICS[metric.name]
        assert metric.unit == definition.unit
        for point in metric.data.data_points:
            assert set(point.attributes) <= set(definition.attributes)
            if definition.kind == "histogram":
                assert tuple(point.explicit_bounds) == definition.buckets


def test_exemplars_point_at_the_span_they_were_measured_in():
    bench = Bench()
    spans = bench.emit(planner)
    points = {p.attributes[semconv.STAGE]: p for p in bench.metrics()[semconv.TIME_TO_FIRST_TOKEN.name]}
    (exemplar,) = points["lm.codes"].exemplars
    assert exemplar.span_id == spans[semconv.LM_CODES].context.span_id


WORK_PEAKS = Peaks({"float32": 1e9}, bandwidth=1e9, source="measured")


def known_peaks(monkeypatch: pytest.MonkeyPatch, peaks: Peaks | None = WORK_PEAKS) -> None:
    monkeypatch.setattr(stage_work, "peaks_of", lambda _key: peaks)


def working(operations: float, moved: float) -> Pass:
    return Pass(Work, (operations, moved), "float32")


def denoising(root: Stage) -> None:
    dit = add(root, semconv.DIT, 100 * MS, 500 * MS, attributes={semconv.REQUEST_MODEL: "dit"})
    for start in (100, 300):
        add(dit, semconv.DIT_STEP, start * MS, (start + 200) * MS, passes=[working(1e8, 1e7)])


def test_a_span_has_the_work_of_everything_below_it_and_its_share_of_the_roofline(monkeypatch):
    known_peaks(monkeypatch)
    spans = Bench().emit(denoising)
    step, dit, root = spans[semconv.DIT_STEP], spans[semconv.DIT], spans[semconv.GENERATE_MUSIC]
    assert step.attributes[semconv.WORK_OPERATIONS] == 1e8
    assert step.attributes[semconv.ROOFLINE_SHARE] == pytest.approx(0.1 / 0.2)
    assert dit.attributes[semconv.WORK_OPERATIONS] == root.attributes[semconv.WORK_OPERATIONS] == 2e8
    assert dit.attributes[semconv.WORK_BYTES] == 2e7
    assert dit.attributes[semconv.WORK_OPERATION_RATE] == pytest.approx(5e8)
    assert dit.attributes[semconv.WORK_BYTE_RATE] == pytest.approx(5e7)
    assert dit.attributes[semconv.ROOFLINE_SHARE] == pytest.approx(0.5)
    assert dit.attributes[semconv.ROOFLINE_CEILING] == dit.attributes[semconv.ROOFLINE_BOUND] == "compute"
    assert root.attributes[semconv.DEVICE_PEAK_BANDWIDTH] == 1e9
    assert root.attributes[semconv.DEVICE_PEAK_SOURCE] == "measured"
    assert semconv.DEVICE_PEAK_SOURCE not in dit.attributes


def test_work_is_counted_under_stages_and_rates_are_those_of_the_last_run(monkeypatch):
    known_peaks(monkeypatch)
    bench = Bench()
    bench.emit(denoising)
    metrics = bench.metrics()
    (counted,) = metrics[semconv.WORK_OPERATIONS_COUNT.name]
    assert (counted.value, counted.attributes[semconv.STAGE]) == (2e8, "dit")
    rates = {point.attributes[semconv.STAGE]: point.value for point in metrics[semconv.WORK_OPERATION_RATE_LAST.name]}
    assert rates == {"dit": pytest.approx(5e8), "dit.step": pytest.approx(5e8)}
    shares = {
        point.attributes[semconv.ROOFLINE_BOUND]: point.value
        for point in metrics[semconv.ROOFLINE_SHARE_LAST.name]
        if point.attributes[semconv.STAGE] == "dit"
    }
    assert shares == {"compute": pytest.approx(0.5), "memory": 0.0, "launch": 0.0}


def test_without_peaks_there_is_work_and_no_share(monkeypatch):
    known_peaks(monkeypatch, None)
    bench = Bench()
    spans = bench.emit(denoising)
    assert spans[semconv.DIT].attributes[semconv.WORK_OPERATIONS] == 2e8
    assert not {name for name in spans[semconv.DIT].attributes if name.startswith("acestep.roofline")}
    assert semconv.ROOFLINE_SHARE_LAST.name not in bench.metrics()


def test_a_spoiled_file_of_peaks_is_a_warning_and_costs_no_trace(monkeypatch, caplog):
    def spoiled(_key):
        raise ValueError("devices.json is not a file of device peaks")

    monkeypatch.setattr(stage_work, "peaks_of", spoiled)
    spans = Bench().emit(denoising)
    assert spans[semconv.DIT].attributes[semconv.WORK_OPERATIONS] == 2e8
    assert "devices.json" in caplog.text


@pytest.mark.parametrize(("host_end", "bound"), [(490, "launch"), (110, "compute")])
def test_a_stage_that_kept_the_host_busy_all_along_is_launch_bound(monkeypatch, host_end, bound):
    """Far from the roofline: a device that waits for its work."""
    known_peaks(monkeypatch)

    class Device(EventClock):
        """Resolves a mark with an event to the event's time."""

        def resolve(self, marks):
            return [self.time_of(mark if mark.event is None else Mark(mark.event)) for mark in marks]

    def build(root):
        dit = add(root, semconv.DIT, 100 * MS, 500 * MS, passes=[working(1e7, 1e6)])
        dit.start, dit.end = Mark(100 * MS, 100 * MS), Mark(host_end * MS, 500 * MS)

    spans = Bench().emit(build, clock=Device)
    assert spans[semconv.DIT].attributes[semconv.ROOFLINE_CEILING] == "compute"
    assert spans[semconv.DIT].attributes[semconv.ROOFLINE_BOUND] == bound


@pytest.mark.parametrize(("tile_host_end", "bound"), [(480, "launch"), (120, "memory")])
def test_a_decode_in_which_the_host_waits_is_judged_by_its_tiles(monkeypatch, tile_host_end, bound):
    """The host is in the decode as long as the device, because it waits for the audio."""
    known_peaks(monkeypatch)

    class Device(EventClock):
        """Resolves a mark with an event to the event's time."""

        def resolve(self, marks):
            return [self.time_of(mark if mark.event is None else Mark(mark.event)) for mark in marks]

    def build(root):
        decode = add(root, semconv.VAE_DECODE, 100 * MS, 500 * MS)
        decode.start, decode.end = Mark(100 * MS, 100 * MS), Mark(500 * MS, 500 * MS)
        tile = add(decode, semconv.VAE_TILE, 100 * MS, 490 * MS, passes=[working(1e6, 1e7)])
        tile.start, tile.end = Mark(100 * MS, 100 * MS), Mark(tile_host_end * MS, 490 * MS)

    spans = Bench().emit(build, clock=Device)
    assert spans[semconv.VAE_DECODE].attributes[semconv.ROOFLINE_BOUND] == bound
    assert spans[semconv.VAE_TILE].attributes[semconv.ROOFLINE_BOUND] == bound
