"""A song is encoded as FLAC in pieces that become one valid stream."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep import flac
from acestep.flac import FRAME_SAMPLES, PIECE_SAMPLES, encode_flac

RATE = 48_000
EFFORT, THREADS = 0.5, 4


def music(length: int, channels: int = 2, seed: int = 0) -> Any:
    """Tones that come and go under noise that both channels share in part: every way to join two channels occurs."""
    generator, time = np.random.default_rng(seed), np.arange(length)[:, None] / RATE
    tones = np.sin(2 * np.pi * np.array([[220.0, 330.0]])[:, :channels] * time) * np.sin(time) ** 2
    noise = generator.standard_normal((length, 1)) + 0.1 * generator.standard_normal((length, channels))
    return np.ascontiguousarray((8_000 * tones + 400 * noise).astype(np.int16))


def decoded(content: bytes) -> Any:
    samples, rate = soundfile.read(io.BytesIO(content), dtype="int16", always_2d=True)
    assert rate == RATE
    return samples


def stream_info(content: bytes) -> dict[str, int | bytes]:
    """RFC 9639, section 8.2."""
    info = content[8:42]
    sizes = int.from_bytes(info[10:18], "big")
    return {
        "frame samples": int.from_bytes(info[0:2], "big"),
        "smallest frame": int.from_bytes(info[4:7], "big"),
        "largest frame": int.from_bytes(info[7:10], "big"),
        "rate": sizes >> 44,
        "channels": (sizes >> 41 & 0b111) + 1,
        "bits": (sizes >> 36 & 0b11111) + 1,
        "samples": sizes & (1 << 36) - 1,
        "digest": info[18:34],
    }


def bitwise_checksum(data: bytes, polynomial: int, width: int) -> int:
    """By the definition, bit by bit."""
    value = 0
    for byte in data:
        value ^= byte << width - 8
        for _ in range(8):
            value = value << 1 ^ (1 << width | polynomial if value >> width - 1 else 0)
    return value


@given(
    st.sampled_from([0, 1, PIECE_SAMPLES, 2 * PIECE_SAMPLES]),
    st.integers(-FRAME_SAMPLES - 300, FRAME_SAMPLES + 300),
    st.integers(1, 2),
)
@settings(max_examples=25, deadline=None)
def test_what_is_decoded_is_what_was_encoded(whole_pieces: int, more: int, channels: int) -> None:
    samples = music(max(1, whole_pieces + more), channels)
    np.testing.assert_array_equal(decoded(encode_flac(samples, RATE, EFFORT, THREADS)), samples)


def test_the_stream_describes_the_whole_song() -> None:
    samples = music(2 * PIECE_SAMPLES + 5_000)
    content = encode_flac(samples, RATE, EFFORT, THREADS)
    info = stream_info(content)
    described = {name: info[name] for name in ("frame samples", "rate", "channels", "bits", "samples", "digest")}
    assert described == {
        "frame samples": FRAME_SAMPLES,
        "rate": RATE,
        "channels": 2,
        "bits": 16,
        "samples": len(samples),
        "digest": hashlib.md5(samples.tobytes()).digest(),
    }


def test_frames_have_consecutive_numbers_and_valid_checksums() -> None:
    """Numbers of one, two and three bytes: 2,048 frames are beyond the longest number of two."""
    _, *frames = flac._divided(flac._encoded(music(3 * FRAME_SAMPLES + 100), RATE, EFFORT))
    metadata = flac._divided(flac._encoded(music(PIECE_SAMPLES), RATE, EFFORT))[0]
    for first, number_length in ((0, 1), (128, 2), (2_048, 3)):
        renumbered = flac._renumbered(metadata, frames, first)
        for number, (frame, before) in enumerate(zip(renumbered, frames, strict=True), start=first):
            assert frame[4 : 4 + number_length] == chr(number).encode()
            # A last frame of 100 samples says its length behind its number.
            header = 4 + number_length + (1 if number == first + 3 else 0)
            assert frame[header] == bitwise_checksum(frame[:header], 0x07, 8)
            assert int.from_bytes(frame[-2:], "big") == bitwise_checksum(frame[:-2], 0x8005, 16)
            assert len(frame) == len(before) + number_length - 1


def test_a_song_of_pieces_has_the_frames_of_one_encoded_at_once() -> None:
    """A piece begins with a choice of its own, so a frame may differ; here none does, and the description agrees."""
    samples = music(PIECE_SAMPLES + 3 * FRAME_SAMPLES)
    assert encode_flac(samples, RATE, EFFORT, THREADS) == encode_flac(samples, RATE, EFFORT, threads=1)


@pytest.mark.parametrize("threads", [0, 1, 2, 16])
def test_any_number_of_threads_writes_the_same_samples(threads: int) -> None:
    """A song of a batch may get none: there are more songs than processors."""
    samples = music(2 * PIECE_SAMPLES + 1)
    np.testing.assert_array_equal(decoded(encode_flac(samples, RATE, EFFORT, threads)), samples)


def test_an_encoder_with_frames_of_another_length_encodes_the_song_at_once() -> None:
    """As libFLAC has at its lowest effort."""
    samples = music(PIECE_SAMPLES + 1)
    content = encode_flac(samples, RATE, 0.0, THREADS)
    assert stream_info(content)["frame samples"] != FRAME_SAMPLES
    np.testing.assert_array_equal(decoded(content), samples)


def test_an_encoder_that_writes_in_other_portions_encodes_the_song_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class InHalves(flac._Writes):
        def write(self, data: Any) -> int:
            middle = len(data) // 2
            return super().write(data[:middle]) + super().write(data[middle:])

    monkeypatch.setattr(flac, "_Writes", InHalves)
    samples = music(PIECE_SAMPLES + 1)
    np.testing.assert_array_equal(decoded(encode_flac(samples, RATE, EFFORT, THREADS)), samples)
