"""Requests are checked before any model runs; the error names the value and the range."""

import pytest

from acestep.errors import AudioWriteError, InvalidRequest
from acestep.types import GenerationRequest, SamplingSettings, SongMetadata
from acestep.validation import validate


@pytest.mark.parametrize("duration", [9.99, 600.1, 0, -1, float("nan"), float("inf")])
def test_a_duration_outside_10_to_600_seconds_is_refused(duration):
    with pytest.raises(InvalidRequest, match=r"duration .* s is out of range: 10 \.\.\. 600 s"):
        validate(GenerationRequest(duration=duration))


@pytest.mark.parametrize("batch_size", [0, -1, 9])
def test_a_batch_outside_1_to_8_is_refused(batch_size):
    with pytest.raises(InvalidRequest, match=r"batch size .* out of range: 1 \.\.\. 8"):
        validate(GenerationRequest(batch_size=batch_size))


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        (SongMetadata(keyscale="H# minor"), "H# minor"),
        (SongMetadata(bpm=999), "999"),
        (SongMetadata(timesignature="5/4"), "5/4"),
        (SongMetadata(language="klingon"), "klingon"),
    ],
)
def test_unknown_metadata_is_named(metadata, named):
    with pytest.raises(InvalidRequest, match=named):
        validate(GenerationRequest(metadata=metadata))


@pytest.mark.parametrize(
    "request_",
    [
        GenerationRequest(inference_steps=0),
        GenerationRequest(guidance_scale=0.5),
        GenerationRequest(guidance_scale=float("nan")),
        GenerationRequest(guidance_interval=(-0.1, 1.0)),
        GenerationRequest(guidance_interval=(0.6, 0.2)),
        GenerationRequest(peak_dbfs=0.5),
        GenerationRequest(peak_dbfs=float("nan")),
        GenerationRequest(shift=0),
        GenerationRequest(seeds=(-1,)),
        GenerationRequest(seeds=(2**32,)),
        GenerationRequest(seeds=(1, 2), batch_size=3),
        GenerationRequest(audio_codes=(64_000,)),
        GenerationRequest(audio_codes=(-1,)),
        GenerationRequest(audio_codes=(0,) * 3_001),
        GenerationRequest(sampling=SamplingSettings(temperature=-0.1)),
        GenerationRequest(sampling=SamplingSettings(top_p=1.1)),
        GenerationRequest(sampling=SamplingSettings(top_k=-1)),
        GenerationRequest(sampling=SamplingSettings(guidance_scale=0.9)),
        GenerationRequest(task_type="cover"),
    ],
)
def test_values_that_no_model_accepts_are_refused(request_):
    with pytest.raises(InvalidRequest):
        validate(request_)


def test_an_unknown_audio_format_is_refused():
    with pytest.raises(AudioWriteError, match="wma"):
        validate(GenerationRequest(audio_format="wma"))


def test_the_limits_themselves_are_accepted():
    validate(GenerationRequest(duration=10, batch_size=1, inference_steps=1, seeds=(0,)))
    validate(GenerationRequest(duration=600, batch_size=8, inference_steps=1_000, seeds=(2**32 - 1,)))
