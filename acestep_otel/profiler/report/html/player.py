"""The songs of a run, for playback on the page: encoded into it, because a page loads nothing from elsewhere."""

from __future__ import annotations

import io
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import soundfile

from acestep_otel import semconv
from acestep_otel.profiler.report.html.quantities import ABSENT, duration
from acestep_otel.profiler.report.spans import Run

_RATE: Final = 48_000
_BLOCK: Final = 10 * _RATE
"""Samples per block: the encoder keeps a whole block on its stack."""


@dataclass(frozen=True, slots=True)
class PlayedSong:
    """One song.

    Attributes:
        name: of its file.
        seconds: its length as text.
        mime_type: of its file.
        sha256: of its file.
        source: Opus in a data URL, about 5 MB for four minutes; empty if the file is missing or is no audio.
    """

    name: str
    seconds: str
    mime_type: str
    sha256: str
    source: str


def played_songs(run: Run) -> tuple[PlayedSong, ...]:
    """The songs on the root span; none without opt-in."""
    root = run.root.attributes
    places = list(root.get(semconv.SONG_LOCATIONS, ()))
    types = list(root.get(semconv.SONG_MIME_TYPES, ()))
    hashes = list(root.get(semconv.SONG_HASHES, ())) or [ABSENT] * len(places)
    seconds = duration(root.get(semconv.AUDIO_DURATION))
    return tuple(
        PlayedSong(place.rpartition("/")[2], seconds, mime_type, sha256, _encoded(place))
        for place, mime_type, sha256 in zip(places, types, hashes, strict=False)
    )


def _encoded(place: str) -> str:
    """A song as Opus in a data URL."""
    path = Path(place)
    try:
        if not path.is_file():
            return ""
        buffer = io.BytesIO()
        with (
            soundfile.SoundFile(path) as song,
            soundfile.SoundFile(buffer, "w", _RATE, song.channels, "OPUS", format="OGG") as opus,
        ):
            for block in song.blocks(_BLOCK):
                opus.write(block)
    except (OSError, RuntimeError):
        # A file that is no longer audio must not prevent the page.
        return ""
    return f"data:audio/ogg;base64,{b64encode(buffer.getvalue()).decode()}"
