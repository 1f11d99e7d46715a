"""The tracing layer is on for one block, with the command line's own providers."""

from __future__ import annotations

import pytest

from acestep.inference import MusicPipeline
from acestep_otel.errors import SetupError
from acestep_otel.instrumentor import AceStepInstrumentor
from acestep_otel.profiler.telemetry.providers import Telemetry, detail_level, instrumented
from acestep_otel.settings import Detail


def test_the_engine_is_wrapped_inside_the_block_only() -> None:
    before = MusicPipeline.generate
    with instrumented(Telemetry(), Detail.STEP):
        assert MusicPipeline.generate is not before
    assert MusicPipeline.generate is before


def test_it_takes_over_from_automatic_instrumentation() -> None:
    before = MusicPipeline.generate
    AceStepInstrumentor().instrument()
    automatic = MusicPipeline.generate
    with instrumented(Telemetry(), Detail.STEP):
        assert MusicPipeline.generate is not automatic
        assert MusicPipeline.generate.__wrapped__ is before
    assert MusicPipeline.generate is before


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACESTEP_OTEL_DETAIL", "stage")
    assert detail_level(None) is Detail.STAGE
    assert detail_level("token") is Detail.TOKEN


@pytest.mark.parametrize(
    ("variable", "value"),
    [("ACESTEP_OTEL_DETAIL", "deep"), ("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "maybe")],
)
def test_a_wrong_setting_is_refused(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SetupError, match=variable):
        detail_level("step")
