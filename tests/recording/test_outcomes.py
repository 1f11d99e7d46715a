"""Outcomes of requests: a cancellation is a separate outcome and not an error."""

import asyncio
import concurrent.futures

import pytest
from opentelemetry.trace import StatusCode

from acestep.errors import Cancelled, OutOfMemory
from acestep.inference import generate_music
from acestep.types import GenerationRequest
from acestep_otel import semconv
from acestep_otel.recording.outcomes import error_type, is_cancellation, outcome_of

SONG = GenerationRequest(caption="slow piano", lyrics="[Verse]\nhome", duration=10.0, inference_steps=2)


class CallerLeft(Cancelled):
    """An application's own."""


@pytest.mark.parametrize(
    "error", [Cancelled(), CallerLeft(), asyncio.CancelledError(), concurrent.futures.CancelledError()]
)
def test_cancellations_of_the_engine_of_applications_and_of_python_are_recognised(error):
    assert is_cancellation(error)
    assert outcome_of(error) == "cancelled"
    assert error_type(error) is None


@pytest.mark.parametrize(
    "error", [ValueError(), KeyboardInterrupt(), SystemExit(143), OutOfMemory("full", stage="dit")]
)
def test_everything_else_is_an_error(error):
    assert not is_cancellation(error)
    assert outcome_of(error) == error_type(error) == type(error).__name__


def test_nothing_is_well():
    assert (outcome_of(None), error_type(None)) == ("ok", None)


def test_a_cancelled_request_has_no_error_anywhere(traced, tiny_models):
    def leave(_progress):
        raise CallerLeft

    traced.instrument()
    with pytest.raises(CallerLeft):
        generate_music(tiny_models, SONG, progress=leave)
    (root,) = traced.named(semconv.GENERATE_MUSIC)
    assert root.attributes[semconv.OUTCOME] == "cancelled"
    for span in traced.spans:
        assert span.status.status_code is StatusCode.UNSET
        assert semconv.ERROR_TYPE not in span.attributes
        assert not span.events
    (point,) = traced.metric(semconv.REQUESTS)
    assert (point.attributes[semconv.OUTCOME], point.value) == ("cancelled", 1)
    (point,) = traced.metric(semconv.REQUEST_DURATION)
    assert semconv.ERROR_TYPE not in point.attributes
