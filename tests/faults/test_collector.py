"""Collectors that are missing, refuse, hang, fail or restart: songs are the same and are never delayed."""

import threading

import pytest
import torch
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult

from acestep.inference import generate_music
from acestep.types import GenerationRequest
from acestep_otel import semconv
from acestep_otel.instrumentor import AceStepInstrumentor
from acestep_otel.recording import background_emission as deferral
from acestep_otel.shutdown import deliver_within
from benchmarks.collectors import free_port
from tests.receivers import collector, grpc_receiver, refusing_endpoint, silent_endpoint

SONG = GenerationRequest(caption="a song", duration=10, seeds=(7,), inference_steps=2)
SPANS_OF_A_SONG = 1 + 1 + 3 + 2


class Blocked(SpanExporter):
    """Takes its time: hangs until it is released."""

    def __init__(self):
        self.entered, self.release, self.exported = threading.Event(), threading.Event(), 0

    def export(self, spans):
        self.entered.set()
        self.release.wait(60)
        self.exported += len(spans)
        return SpanExportResult.SUCCESS

    def shutdown(self):
        self.release.set()


class Raising(SpanExporter):
    def __init__(self):
        self.entered = threading.Event()

    def export(self, spans):
        self.entered.set()
        raise RuntimeError("the exporter is broken")


class Service:
    """A process's providers, as a service configures them."""

    def __init__(self, exporter, **batches):
        self.reader = InMemoryMetricReader()
        self.meter_provider = MeterProvider([self.reader], shutdown_on_exit=False)
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.exporter = exporter
        processor = BatchSpanProcessor(
            exporter, schedule_delay_millis=50, meter_provider=self.meter_provider, **batches
        )
        self.provider.add_span_processor(processor)
        AceStepInstrumentor().instrument(tracer_provider=self.provider, meter_provider=self.meter_provider)

    def close(self, seconds=1.0):
        AceStepInstrumentor().uninstrument()
        deliver_within(seconds, [lambda _: self.provider.shutdown()], [self.exporter.shutdown], report=lambda _: None)

    def spans_processed(self):
        """Spans by what became of them: ``""`` for those given to the exporter."""
        data = self.reader.get_metrics_data()
        return {
            point.attributes.get("error.type", ""): point.value
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == "otel.sdk.processor.span.processed"
            for point in metric.data.data_points
        }


@pytest.fixture
def serving(monkeypatch):
    monkeypatch.setenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "true")
    services = []

    def start(exporter, **batches):
        services.append(Service(exporter, **batches))
        return services[-1]

    yield start
    for service in services:
        service.close()


@pytest.fixture(scope="module")
def plain(tiny_models):
    return generate_music(tiny_models, SONG).songs[0].audio


@pytest.mark.parametrize("endpoint", [refusing_endpoint, silent_endpoint])
def test_songs_are_the_same_when_the_collector_takes_nothing(serving, tiny_models, plain, endpoint):
    with endpoint() as url:
        serving(OTLPSpanExporter(endpoint=url, insecure=True, timeout=1))
        for _ in range(2):
            assert torch.equal(generate_music(tiny_models, SONG).songs[0].audio, plain)


def test_songs_are_the_same_without_a_collector_and_without_an_sdk(traced, tiny_models, plain):
    traced.tracer_provider.shutdown()
    traced.instrument()
    assert torch.equal(generate_music(tiny_models, SONG).songs[0].audio, plain)
    AceStepInstrumentor().uninstrument()
    AceStepInstrumentor().instrument()
    assert torch.equal(generate_music(tiny_models, SONG).songs[0].audio, plain)


def test_no_song_waits_for_an_export_that_hangs(serving, tiny_models, plain):
    """Songs are finished while the exporter still holds the first batch."""
    exporter = Blocked()
    serving(exporter)
    generate_music(tiny_models, SONG)
    assert exporter.entered.wait(10)
    for _ in range(3):
        assert torch.equal(generate_music(tiny_models, SONG).songs[0].audio, plain)
    assert not exporter.release.is_set()


def test_a_slow_collector_gets_everything_in_the_end(serving, tiny_models):
    exporter = Blocked()
    service = serving(exporter)
    for _ in range(3):
        generate_music(tiny_models, SONG)
    exporter.release.set()
    AceStepInstrumentor().flush()
    service.provider.shutdown()
    assert exporter.exported == 3 * SPANS_OF_A_SONG
    assert service.spans_processed() == {"": 3 * SPANS_OF_A_SONG}


def test_spans_that_a_full_queue_drops_are_a_metric(serving, tiny_models, plain):
    exporter = Blocked()
    service = serving(exporter, max_queue_size=10, max_export_batch_size=1)
    for _ in range(4):
        assert torch.equal(generate_music(tiny_models, SONG).songs[0].audio, plain)
    AceStepInstrumentor().flush()
    dropped = service.spans_processed()["queue_full"]
    assert dropped > 0
    exporter.release.set()
    service.provider.shutdown()
    assert exporter.exported + dropped == 4 * SPANS_OF_A_SONG


def test_an_exporter_that_raises_costs_its_spans_and_nothing_else(serving, tiny_models, plain, caplog):
    exporter = Raising()
    serving(exporter)
    for _ in range(2):
        assert torch.equal(generate_music(tiny_models, SONG).songs[0].audio, plain)
        assert exporter.entered.wait(10)
        exporter.entered.clear()
    assert "Exception while exporting" in caplog.text


def test_a_collector_that_is_killed_and_comes_back_gets_the_songs_after_that(serving, tiny_models, plain):
    ports = free_port(), free_port()

    def make_until(arrived, service):
        for _ in range(60):
            assert torch.equal(generate_music(tiny_models, SONG).songs[0].audio, plain)
            if arrived():
                return True
        return False

    with grpc_receiver() as received:
        with collector(received.endpoint, ports) as (endpoint, _):
            service = serving(OTLPSpanExporter(endpoint=endpoint, insecure=True, timeout=2))
            assert make_until(lambda: received.wait_for_spans(SPANS_OF_A_SONG, 0.5), service)
        before = len(received.span_names())
        assert torch.equal(generate_music(tiny_models, SONG).songs[0].audio, plain)
        with collector(received.endpoint, ports):
            assert make_until(lambda: len(received.wait_for_spans(before + 1, 0.5)) > before, service)


def test_a_span_processor_that_blocks_costs_traces_and_neither_time_nor_memory(traced, tiny_models, monkeypatch):
    monkeypatch.setattr(deferral, "_CAPACITY", 2)
    exporter = Blocked()
    traced.tracer_provider.add_span_processor(SimpleSpanProcessor(exporter))
    traced.instrument()
    generate_music(tiny_models, SONG)
    assert exporter.entered.wait(10)
    for _ in range(4):
        generate_music(tiny_models, SONG)
    assert [point.value for point in traced.metric(semconv.TRACES_DROPPED)] == [2]
    exporter.release.set()
    assert len(traced.named("generate_music")) == 3
    assert [point.value for point in traced.metric(semconv.REQUESTS)] == [5]
