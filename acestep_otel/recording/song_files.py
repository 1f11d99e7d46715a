"""The songs of a request in its trace, if enabled: location, hash, MIME type.

The hash is computed on the thread that creates the spans: a file of 30 MB takes some twenty milliseconds, which the
request does not wait for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from acestep_otel import semconv

AS_PATH: Final = "path"
"""Value of the setting that names songs by their paths."""
_MIME_TYPES: Final = {
    ".flac": "audio/flac",
    ".wav": "audio/wav",
    ".mp3": "audio/mpeg",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
}


def song_attributes(files: Sequence[Path], where: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Attributes of the root span about its songs; every list has one entry per song.

    Args:
        files: of the songs, in order.
        where: ``path``, or a URL under which the folders of the files are served by the names of the files.
    """
    if not files:
        return
    yield semconv.SONG_LOCATIONS, tuple(_place(file, where) for file in files)
    yield semconv.SONG_MIME_TYPES, tuple(_MIME_TYPES.get(file.suffix.lower(), "audio/unknown") for file in files)
    hashes = tuple(map(_hash, files))
    if all(hashes):
        yield semconv.SONG_HASHES, hashes


def _place(file: Path, where: str) -> str:
    return str(file.absolute()) if where == AS_PATH else f"{where.rstrip('/')}/{file.name}"


def _hash(file: Path) -> str:
    """SHA-256 of a file; empty if it no longer exists."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""
