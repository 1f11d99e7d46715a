"""Head sampling: an unsampled request costs almost nothing and is still counted; a header forces a trace."""

import pytest
import torch
from opentelemetry import context as otel_context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from acestep.errors import OutOfMemory
from acestep.inference import generate_music
from acestep.renderer.renderer import Renderer
from acestep.types import GenerationRequest
from acestep_otel import semconv
from acestep_otel.forced_sampling.propagator import ForcePropagator, is_forced
from acestep_otel.forced_sampling.sampler import ForcibleSampler, forcible_traceidratio
from acestep_otel.instrumentor import AceStepInstrumentor
from acestep_otel.recording.clock import Clocks, HostClock
from acestep_otel.recording.vram import VramTracker
from tests.tracing import Traced

SONG = GenerationRequest(caption="a song", duration=10, seeds=(7,), inference_steps=2)
UNSAMPLED = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}
SAMPLED = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
PROPAGATOR = CompositePropagator([TraceContextTextMapPropagator(), ForcePropagator()])


@pytest.fixture
def sampled_by():
    """Instruments with a sampler."""

    def instrument(sampler):
        traced = Traced(sampler)
        traced.instrument()
        return traced

    yield instrument
    AceStepInstrumentor().uninstrument()


def make(models, **headers):
    token = otel_context.attach(PROPAGATOR.extract(headers))
    try:
        return generate_music(models, SONG)
    finally:
        otel_context.detach(token)


def test_a_request_that_is_sampled_out_records_no_mark_and_reads_no_clock(sampled_by, tiny_models, monkeypatch):
    traced = sampled_by(ALWAYS_OFF)
    for owner, name in ((Clocks, "for_device"), (HostClock, "mark"), (VramTracker, "begin"), (VramTracker, "read")):
        monkeypatch.setattr(owner, name, lambda *args, name=name: pytest.fail(f"{name} was called"))
    generate_music(tiny_models, SONG)
    assert traced.spans == []


def test_it_is_counted_and_timed_all_the_same(sampled_by, tiny_models):
    traced = sampled_by(ALWAYS_OFF)
    generate_music(tiny_models, SONG)
    (requests,) = traced.metric(semconv.REQUESTS)
    assert (requests.value, requests.attributes[semconv.OUTCOME]) == (1, "ok")
    (duration,) = traced.metric(semconv.REQUEST_DURATION)
    assert duration.count == 1
    assert duration.sum > 0
    (audio,) = traced.metric(semconv.AUDIO_SECONDS)
    assert audio.value == 10
    assert traced.metric(semconv.STAGE_DURATION) == []


@pytest.mark.parametrize("sampler", [ALWAYS_OFF, ALWAYS_ON], ids=["sampled out", "sampled"])
def test_requests_that_run_now_are_counted_while_they_run(sampled_by, tiny_models, sampler):
    traced = sampled_by(sampler)
    running = []
    generate_music(
        tiny_models, SONG, progress=lambda _: running.append(traced.metric(semconv.REQUESTS_ACTIVE)[0].value)
    )
    assert set(running) == {1}
    assert traced.metric(semconv.REQUESTS_ACTIVE)[0].value == 0


def test_its_failures_are_counted_with_their_stage(sampled_by, tiny_models, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Renderer, "predict_velocity", fail)
    traced = sampled_by(ALWAYS_OFF)
    with pytest.raises(OutOfMemory):
        generate_music(tiny_models, SONG)
    assert traced.metric(semconv.REQUESTS)[0].attributes[semconv.OUTCOME] == "OutOfMemory"
    assert traced.metric(semconv.OUT_OF_MEMORY)[0].attributes[semconv.STAGE] == "dit"


def test_the_caller_s_decision_comes_first(sampled_by, tiny_models):
    traced = sampled_by(ParentBased(ALWAYS_ON))
    make(tiny_models, **UNSAMPLED)
    assert traced.spans == []
    make(tiny_models, **SAMPLED)
    (root,) = traced.named("generate_music")
    assert root.parent.span_id == 0xB7AD6B7169203331
    assert root.context.trace_id == 0x0AF7651916CD43DD8448EB211C80319C


@pytest.mark.parametrize("traceparent", [{}, UNSAMPLED], ids=["of its own", "of an unsampled caller"])
def test_the_header_forces_a_trace_and_marks_it(sampled_by, tiny_models, traceparent):
    traced = sampled_by(forcible_traceidratio("0"))
    make(tiny_models, **traceparent)
    assert traced.spans == []
    make(tiny_models, **traceparent, **{"x-force-trace": "true"})
    (root,) = traced.named("generate_music")
    assert root.attributes[semconv.TRACE_FORCE] is True
    assert len(traced.named("acestep.dit.step")) == 2


@pytest.mark.parametrize(
    ("header", "forced"), [("true", True), (" TRUE ", True), ("1", True), ("false", False), ("0", False), ("", False)]
)
def test_only_yes_means_yes_and_it_is_passed_on(header, forced):
    context = ForcePropagator().extract({"x-force-trace": header})
    assert is_forced(context) is forced
    passed_on = {}
    ForcePropagator().inject(passed_on, context)
    assert passed_on == ({"x-force-trace": "true"} if forced else {})


def test_the_sampler_s_argument_is_a_share():
    assert isinstance(forcible_traceidratio(), ForcibleSampler)
    assert "TraceIdRatioBased{0.25}" in forcible_traceidratio("0.25").get_description()
    with pytest.raises(ValueError, match="half"):
        forcible_traceidratio("half")
