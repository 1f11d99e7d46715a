"""The window of a recording: what is regenerated in it, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep.errors import InvalidRequest
from acestep.renderer.source import CROSSFADE_SAMPLES, Source
from acestep.types import SAMPLES_PER_FRAME

RATE = 48_000
SAMPLES = 30_000


def noise(samples: int = SAMPLES, seed: int = 0) -> torch.Tensor:
    return torch.rand(2, samples, generator=torch.Generator().manual_seed(seed)) - 0.5


@st.composite
def windows(draw) -> tuple[float, float | None]:
    start = draw(st.integers(-20_000, SAMPLES))
    ends = st.integers(max(start + 1, 0), SAMPLES + 20_000)
    end = draw(ends if start == SAMPLES else st.none() | ends)
    return start / RATE, None if end is None else end / RATE


@given(windows())
def test_the_recording_is_in_the_source_and_the_rest_is_silence_inside_the_window(window):
    recording = noise()
    source = Source.with_window(recording, *window)
    begin, end = source.recorded
    assert torch.equal(source.audio[:, begin:end], recording)
    assert not source.audio[:, :begin].any()
    assert not source.audio[:, end:].any()
    start, stop = source.window
    assert begin == 0 or start == 0
    assert end == source.samples or stop == source.samples
    assert stop - start == round(((SAMPLES / RATE if window[1] is None else window[1]) - window[0]) * RATE)


@given(windows())
def test_outside_the_window_the_audio_stays_as_it_was_to_the_bit(window):
    source = Source.with_window(noise(), *window)
    generated = torch.stack([noise(source.samples, 1), noise(source.samples, 2)])
    spliced = source.splice(generated)
    start, stop = source.window
    assert spliced.shape == generated.shape
    for song in spliced:
        assert torch.equal(song[:, :start], source.audio[:, :start])
        assert torch.equal(song[:, stop:], source.audio[:, stop:])


@given(windows())
def test_inside_the_window_past_the_joins_the_audio_is_the_generated_one(window):
    source = Source.with_window(noise(), *window)
    generated = noise(source.samples, 1).unsqueeze(0)
    start, stop = source.window
    inner = slice(start + CROSSFADE_SAMPLES, max(start + CROSSFADE_SAMPLES, stop - CROSSFADE_SAMPLES))
    assert torch.equal(source.splice(generated)[..., inner], generated[..., inner])


@given(windows())
def test_splicing_the_source_into_itself_changes_nothing(window):
    source = Source.with_window(noise(), *window)
    assert torch.allclose(source.splice(source.audio.unsqueeze(0))[0], source.audio, atol=1e-7)


@given(windows())
def test_the_regenerated_frames_are_exactly_those_that_the_window_touches(window):
    source = Source.with_window(noise(), *window)
    start, stop = source.frame_window
    assert start * SAMPLES_PER_FRAME <= source.window[0] < (start + 1) * SAMPLES_PER_FRAME
    assert (stop - 1) * SAMPLES_PER_FRAME < source.window[1] <= stop * SAMPLES_PER_FRAME


def test_a_join_is_a_linear_crossfade_on_the_inner_side():
    source = Source.with_window(torch.zeros(2, SAMPLES), 0.1, 0.3)
    spliced = source.splice(torch.ones(1, 2, SAMPLES))[0, 0]
    start, stop = source.window
    steps = torch.full((CROSSFADE_SAMPLES - 1,), 1 / CROSSFADE_SAMPLES)
    assert torch.allclose(spliced[start : start + CROSSFADE_SAMPLES].diff(), steps, atol=1e-6)
    assert torch.allclose(spliced[stop - CROSSFADE_SAMPLES : stop].diff(), -steps, atol=1e-6)


def test_there_is_no_fade_at_the_ends_of_the_song():
    source = Source.with_window(torch.zeros(2, SAMPLES), 0.0)
    assert torch.equal(source.splice(torch.ones(1, 2, SAMPLES)), torch.ones(1, 2, SAMPLES))


@pytest.mark.parametrize(("start", "end", "blended"), [(-0.2, 0.0, 0), (-0.2, 0.005, 240), (-0.2, 0.1, 480)])
def test_a_song_extended_to_the_left_is_blended_as_far_as_the_window_reaches_into_it(start, end, blended):
    source = Source.with_window(torch.full((2, SAMPLES), 0.25), start, end)
    spliced = source.splice(torch.ones(1, 2, source.samples))[0, 0]
    stop = source.window[1]
    assert torch.equal(spliced[: stop - blended], torch.ones(stop - blended))
    assert (spliced[stop - blended : stop] < 1).all()
    assert torch.equal(spliced[stop:], source.audio[0, stop:])


def test_a_window_shorter_than_two_crossfades_still_joins_both_sides():
    source = Source.with_window(torch.zeros(2, SAMPLES), 0.1, 0.1 + 100 / RATE)
    spliced = source.splice(torch.ones(1, 2, SAMPLES))[0, 0]
    start, stop = source.window
    assert spliced[start] < 0.02
    assert spliced[stop - 1] < 0.02
    assert spliced[start:stop].max() > 0.98


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (0.3, 0.3, "0.3 ... 0.3 s is empty"),
        (0.3, 0.1, "is empty"),
        (0.625, None, "is empty"),
        (0.7, 0.8, "does not touch the recording, which is 0 ... 0.625 s"),
        (-0.5, -0.1, "does not touch"),
    ],
)
def test_a_window_without_anything_to_do_is_refused(start, end, message):
    with pytest.raises(InvalidRequest, match=message):
        Source.with_window(noise(), start, end)


def test_a_whole_recording_is_all_window():
    source = Source.whole(noise())
    assert source.window == source.recorded == (0, SAMPLES)
    assert source.duration == SAMPLES / RATE
