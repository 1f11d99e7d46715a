"""The helpers for tests of a user's service."""

import pytest

from acestep.inference import generate_music
from acestep.types import GenerationRequest
from acestep_otel import AceStepInstrumentor, QueueTelemetry
from acestep_otel.testing import TelemetryCapture, capture_telemetry, tree

SONG = GenerationRequest(caption="a song", duration=10, seeds=(7,), inference_steps=2)


def test_spans_and_metrics_of_the_block_are_kept(tiny_models):
    with capture_telemetry(detail="stage") as captured:
        generate_music(tiny_models, SONG)
    assert tree(captured.spans) == [
        ("generate_music", ["acestep.condition", "acestep.dit", "acestep.vae.decode"]),
    ]
    assert captured.named("acestep.dit")[0].attributes["acestep.dit.steps"] == 2
    assert captured.metric("acestep.requests")[0].value == 1
    assert captured.metric("acestep.no.such.metric") == []


def test_nothing_is_traced_after_it(tiny_models):
    with capture_telemetry() as captured:
        pass
    generate_music(tiny_models, SONG)
    assert captured.spans == []


def test_a_block_inside_another_is_refused():
    with capture_telemetry():
        with pytest.raises(RuntimeError, match="uninstrument"), capture_telemetry():
            pass
        assert AceStepInstrumentor().is_instrumented_by_opentelemetry


def test_other_telemetry_of_the_service_joins():
    captured = TelemetryCapture()
    queue = QueueTelemetry(2, tracer_provider=captured.tracer_provider, meter_provider=captured.meter_provider)
    queue.enter().leave()
    assert tree(captured.spans) == ["acestep.queue.wait"]
    assert captured.metric("acestep.queue.capacity")[0].value == 2
