"""Names of the conventions that tools read, on the spans of real requests; and the page that lists them."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from acestep.blueprints import understand_music
from acestep.checkpoints import Models
from acestep.inference import generate_music
from acestep.types import GenerationRequest, SongwritingSettings
from acestep_otel import semconv
from acestep_otel.instrumentor import AceStepInstrumentor
from tests.tracing import Traced

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "conventions.md").read_text("utf-8")


def by_name(traced: Traced) -> dict[str, dict[str, object]]:
    AceStepInstrumentor().flush()
    return {span.name: dict(span.attributes) for span in traced.spans}


def test_a_request_for_songs(traced: Traced, tiny_models: Models) -> None:
    traced.instrument()
    song = GenerationRequest(
        caption="a song", duration=10, inference_steps=1, thinking=True, use_cot_metas=True, batch_size=2, seeds=(7, 8)
    )
    generate_music(tiny_models, song)
    spans = by_name(traced)
    root, lm, cot, codes = (
        spans[name] for name in (semconv.GENERATE_MUSIC, semconv.LM, semconv.LM_COT, semconv.LM_CODES)
    )
    assert root["gen_ai.request.seed"] == 7
    assert root["gen_ai.response.model"] == root["gen_ai.request.model"]
    assert root["gen_ai.response.finish_reasons"] == ("stop", "stop")
    assert lm["gen_ai.usage.audio.output_tokens"] == codes["gen_ai.usage.output_tokens"] == 100
    assert lm["gen_ai.usage.text.output_tokens"] == cot["gen_ai.usage.output_tokens"]
    assert (
        lm["gen_ai.usage.audio.output_tokens"] + lm["gen_ai.usage.text.output_tokens"]
        == lm["gen_ai.usage.output_tokens"]
    )
    assert lm["gen_ai.response.finish_reasons"] == codes["gen_ai.response.finish_reasons"] == ("stop", "stop")
    assert cot["gen_ai.response.finish_reasons"] == ("stop",)
    for phase in (cot, codes):
        assert phase["gen_ai.latency.time_to_first_token"] == phase[semconv.LM_TIME_TO_FIRST_TOKEN]
        assert phase["gen_ai.latency.time_in_model_prefill"] == phase[semconv.LM_PREFILL_DURATION]
        assert phase["gen_ai.latency.time_in_model_decode"] == phase[semconv.LM_DECODE_DURATION]
    (span,) = [span for span in traced.spans if span.name == semconv.GENERATE_MUSIC]
    assert root["gen_ai.latency.e2e"] == (span.end_time - span.start_time) / 1e9
    assert span.instrumentation_scope.schema_url == "https://opentelemetry.io/schemas/gen-ai-dev/1.42.0-dev"


def test_a_text_that_meets_its_limit_says_so(traced: Traced, tiny_models: Models) -> None:
    traced.instrument()
    understand_music(tiny_models.planner, [1, 2, 3], settings=SongwritingSettings(lyrics_token_limit=3))
    root = by_name(traced)[semconv.UNDERSTAND_MUSIC]
    assert root["gen_ai.response.finish_reasons"] == ("length",)
    assert root["gen_ai.usage.audio.input_tokens"] == 3


def test_a_request_that_failed_has_no_finish_reason(traced: Traced, tiny_models: Models) -> None:
    traced.instrument()

    def stop(_progress: object) -> None:
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        generate_music(tiny_models, GenerationRequest(caption="a song", duration=10, inference_steps=1), progress=stop)
    assert "gen_ai.response.finish_reasons" not in by_name(traced)[semconv.GENERATE_MUSIC]


def test_the_page_has_every_name_of_a_convention_that_is_emitted() -> None:
    """A name that starts with a dot continues the one before it."""
    names: set[str] = set()
    before = ""
    for written in re.findall(r"`(\.?[\w.]+)`", PAGE):
        name = written if not written.startswith(".") else _continued(before, written)
        names.add(name)
        before = name
    emitted = {name for name in (*semconv.ATTRIBUTES, *semconv.METRICS) if name.startswith(("gen_ai.", "hw."))}
    assert {name for name in emitted if name not in names and name != "hw.gpu.task"} == set()


def _continued(before: str, ending: str) -> str:
    """The name that an ending stands for: it replaces as many parts as it takes to be a known one."""
    parts = before.split(".")
    known = {*semconv.ATTRIBUTES, *semconv.METRICS}
    candidates = [".".join(parts[:count]) + ending for count in range(len(parts) - 1, 0, -1)]
    return next((candidate for candidate in candidates if candidate in known), candidates[0])
