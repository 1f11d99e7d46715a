"""The recording that a task works on, and the window of it that is regenerated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Self

import torch

from acestep.audio import MAX_RECORDING_SECONDS
from acestep.errors import InvalidRequest
from acestep.types import SAMPLE_RATE, SAMPLES_PER_FRAME

CROSSFADE_SAMPLES: Final = 480
"""Blend of source and generated audio on the inner side of a join (10 ms)."""


@dataclass(frozen=True, slots=True)
class Source:
    """A recording, extended by silence where the window reaches beyond it.

    Ranges are ``(start, stop)`` in samples of ``audio``.

    Attributes:
        audio: float32 on the host, shape ``[2, samples]``, 48 kHz.
        window: what is regenerated.
        recorded: what was recorded; the rest is the silence added for the window to fill.
    """

    audio: torch.Tensor
    window: tuple[int, int]
    recorded: tuple[int, int]

    @classmethod
    def whole(cls, recording: torch.Tensor) -> Self:
        """A recording as it is, all of it in the window."""
        everything = (0, recording.shape[-1])
        return cls(recording, everything, everything)

    @classmethod
    def with_window(cls, recording: torch.Tensor, start: float, end: float | None = None) -> Self:
        """A recording with the part between two times in the window.

        Args:
            recording: shape ``[2, samples]``, 48 kHz.
            start: seconds from the start of the recording; negative extends it to the left.
            end: seconds from the same; more than its length extends it to the right, ``None`` is its end.

        Raises:
            InvalidRequest: see ``window_samples``.
        """
        samples = recording.shape[-1]
        first, last = window_samples(samples, start, end)
        left, right = max(0, -first), max(0, last - samples)
        audio = torch.nn.functional.pad(recording, (left, right))
        return cls(audio, (first + left, last + left), (left, left + samples))

    @property
    def samples(self) -> int:
        """Length with the silence added."""
        return self.audio.shape[-1]

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return self.samples / SAMPLE_RATE

    @property
    def frame_window(self) -> tuple[int, int]:
        """Latent frames, ``(start, stop)``, of the window: a frame that the window touches is regenerated."""
        start, stop = self.window
        return start // SAMPLES_PER_FRAME, math.ceil(stop / SAMPLES_PER_FRAME)

    def splice(self, generated: torch.Tensor) -> torch.Tensor:
        """Put generated audio into the window; everything else stays bit-identical.

        At a join the two are crossfaded over ``CROSSFADE_SAMPLES`` with a constant sum of gains, because both contain
        the same music there. The crossfade is inside the window, and is as short as the recording that the window has
        there to blend with: none where the source was extended from its very edge.

        Args:
            generated: float32 on the host, shape ``[songs, 2, samples]``.

        Returns:
            The same shape.
        """
        start, stop = self.window
        weight = torch.zeros(self.samples)
        weight[start:stop] = 1.0
        longest = min(CROSSFADE_SAMPLES, (stop - start) // 2)
        if start > 0:
            rising = _ramp(min(longest, self.recorded[1] - start))
            weight[start : start + len(rising)] = rising
        if stop < self.samples:
            falling = _ramp(min(longest, stop - self.recorded[0])).flip(0)
            weight[stop - len(falling) : stop] = falling
        return torch.lerp(self.audio.expand_as(generated), generated, weight)


def window_samples(samples: int, start: float, end: float | None) -> tuple[int, int]:
    """The range of a window, in samples of a recording; negative, or beyond its end, where it extends it.

    Args:
        samples: length of the recording.
        start: seconds from its start.
        end: seconds from its start; ``None`` is its end.

    Raises:
        InvalidRequest: the window is empty, does not touch the recording, or makes it too long to render.
    """
    first = round(start * SAMPLE_RATE)
    last = samples if end is None else round(end * SAMPLE_RATE)
    shown = f"window {first / SAMPLE_RATE:g} ... {last / SAMPLE_RATE:g} s"
    if first >= last:
        raise InvalidRequest(f"{shown} is empty: it must end after it starts")
    if last < 0 or first > samples:
        raise InvalidRequest(f"{shown} does not touch the recording, which is 0 ... {samples / SAMPLE_RATE:g} s")
    extended = (max(samples, last) - min(0, first)) / SAMPLE_RATE
    if extended > MAX_RECORDING_SECONDS:
        raise InvalidRequest(f"{shown} extends the recording to {extended:g} s: {MAX_RECORDING_SECONDS} s at most")
    return first, last


def _ramp(samples: int) -> torch.Tensor:
    """Weights from just above 0 to just below 1."""
    return (torch.arange(samples) + 0.5) / samples
