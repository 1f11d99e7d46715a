"""A song as FLAC, encoded in pieces in parallel and joined into one stream.

libsndfile encodes on one thread. The frames of a stream are independent of each other, except that each has a number.
So pieces are encoded separately, and their frames get the numbers that they have in the whole. The checksums of a frame
follow from the old ones, without reading its audio again.

Source: RFC 9639, sections 8.2 (STREAMINFO) and 9 (frames).
"""

from __future__ import annotations

import hashlib
import io
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

import numpy as np
import soundfile

FRAME_SAMPLES: Final = 4_096
"""Samples of a frame, as libFLAC chooses them at the effort in use."""
PIECE_SAMPLES: Final = 128 * FRAME_SAMPLES
"""Samples of a piece, 10.9 s at 48 kHz: as many frames as have numbers of one byte."""

_MARKER: Final = b"fLaC"
_STREAMINFO: Final = slice(8, 42)
"""Behind the marker and the header of its block."""
_SYNC: Final = b"\xff\xf8"
"""The beginning of a frame in a stream whose frames have one length."""
_NUMBER: Final = 4
"""Where in a frame its number is."""
_BYTES_BEHIND_NUMBER: Final = {6: 1, 7: 2}
"""Of the header, by the code of the frame's length; without its checksum."""
_CRC_8: Final = (0x07, 8)
_CRC_16: Final = (0x8005, 16)
"""Polynomial and width of the checksums, RFC 9639 sections 9.1.8 and 9.3."""


def encode_flac(samples: Any, rate: int, effort: float, threads: int) -> bytes:
    """Encode 16-bit samples.

    Args:
        samples: int16, shape ``[samples, channels]``, in C order: an array, or an object that returns one for a slice
            and has the length. Slices are taken on several threads.
        rate: samples per second, one that FLAC has a code for.
        effort: of libFLAC, 0 to 1.
        threads: that may be used. With one the song is encoded at once, because pieces need a second MD5.

    Returns:
        The content of a file.

    Raises:
        soundfile.SoundFileError: libsndfile cannot encode it.
    """
    starts = range(0, len(samples), PIECE_SAMPLES)
    if threads < 2 or len(starts) < 2:
        return _encoded(samples[:], rate, effort).getvalue()

    def piece(start: int, cut: Future[Any]) -> list[bytes]:
        metadata, *frames = _divided(_encoded(cut.result(), rate, effort))
        return [metadata, *_renumbered(metadata, frames, start // FRAME_SAMPLES)]

    with ThreadPoolExecutor(min(len(starts) + 1, threads)) as pool:
        # All in front of what waits for them, so that waiting never blocks the pool.
        cuts = [pool.submit(samples.__getitem__, slice(start, start + PIECE_SAMPLES)) for start in starts]
        digest = pool.submit(_digest, cuts)
        try:
            pieces = list(pool.map(piece, starts, cuts))
        except _UnexpectedForm:
            return _encoded(samples[:], rate, effort).getvalue()
        frames = [frame for _, *frames in pieces for frame in frames]
        return b"".join([_completed(pieces[0][0], frames, len(samples), digest.result()), *frames])


def _digest(cuts: list[Future[Any]]) -> bytes:
    """MD5 of the samples, in order."""
    digest = hashlib.md5(usedforsecurity=False)
    for cut in cuts:
        digest.update(cut.result())
    return digest.digest()


class _UnexpectedForm(Exception):
    """The encoder wrote a valid stream whose frames cannot be joined to others."""


class _Writes(io.BytesIO):
    """A file that knows where each write began: libFLAC writes frame by frame."""

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[int] = []

    def write(self, data: Any) -> int:
        self.starts.append(self.tell())
        return super().write(data)


def _encoded(samples: Any, rate: int, effort: float) -> _Writes:
    """One stream, by libsndfile, which releases the interpreter lock meanwhile."""
    file = _Writes()
    with soundfile.SoundFile(
        file, "w", rate, channels=samples.shape[1], format="FLAC", subtype="PCM_16", compression_level=effort
    ) as encoder:
        encoder.write(samples)
    return file


def _divided(file: _Writes) -> list[bytes]:
    """Metadata and frames of a stream."""
    content = file.getvalue()
    audio = _metadata_length(content)
    # At its end the encoder goes back to complete the metadata.
    starts = [0, *(start for start in file.starts if start >= audio), len(content)]
    return [content[start:end] for start, end in pairwise(starts)]


def _metadata_length(content: bytes) -> int:
    """Bytes in front of the first frame."""
    place, is_last = len(_MARKER), False
    while not is_last:
        is_last = bool(content[place] & 0x80)
        place += 4 + int.from_bytes(content[place + 1 : place + 4], "big")
    return place


def _completed(metadata: bytes, frames: list[bytes], samples: int, digest: bytes) -> bytes:
    """The metadata of the whole, from that of the first piece."""
    info, sizes = metadata[_STREAMINFO], [len(frame) for frame in frames]
    # Rate, channels and bits per sample are in front of the number of samples, which has 36 bits.
    fixed = int.from_bytes(info[10:18], "big") >> 36
    whole = b"".join(
        (
            info[:4],
            min(sizes).to_bytes(3, "big"),
            max(sizes).to_bytes(3, "big"),
            (fixed << 36 | samples).to_bytes(8, "big"),
            digest,
        )
    )
    return metadata[: _STREAMINFO.start] + whole + metadata[_STREAMINFO.stop :]


def _renumbered(metadata: bytes, frames: list[bytes], first: int) -> list[bytes]:
    """Frames of a piece with the numbers that they have in the whole, where the piece begins with the number ``first``.

    Raises:
        _UnexpectedForm: frames of another length, or a write was not a frame.
    """
    info = metadata[_STREAMINFO]
    if int.from_bytes(info[0:2], "big") != FRAME_SAMPLES or int.from_bytes(info[2:4], "big") != FRAME_SAMPLES:
        raise _UnexpectedForm
    headers, bodies, changes = [], [], []
    for number, frame in enumerate(frames):
        if not frame.startswith(_SYNC) or frame[_NUMBER] != number:
            raise _UnexpectedForm
        # The last frame may be shorter than the others, and its header longer.
        end = _NUMBER + 1 + _BYTES_BEHIND_NUMBER.get(frame[2] >> 4, 0)
        header = frame[:_NUMBER] + _coded(first + number) + frame[_NUMBER + 1 : end]
        header += bytes([_checksum(header, *_CRC_8)])
        headers.append(header)
        bodies.append(frame[end + 1 : -2])
        changes.append(_checksum(header, *_CRC_16) ^ _checksum(frame[: end + 1], *_CRC_16))
    # A checksum is linear: what changes in front of a body changes it by as much, moved past the body.
    checksums = _moved(changes, [len(body) for body in bodies])
    checksums ^= np.array([int.from_bytes(frame[-2:], "big") for frame in frames])
    return [
        b"".join((header, body, int(checksum).to_bytes(2, "big")))
        for header, body, checksum in zip(headers, bodies, checksums, strict=True)
    ]


def _coded(number: int) -> bytes:
    """A frame's number, coded as UTF-8 codes a character's (RFC 9639 section 9.1.5), up to 16 bits."""
    return chr(number).encode("utf-8", "surrogatepass")


def _checksum(data: bytes, polynomial: int, width: int) -> int:
    table, top, mask = _table(polynomial, width), width - 8, (1 << width) - 1
    value = 0
    for byte in data:
        value = (value << 8 & mask) ^ table[value >> top ^ byte]
    return value


@lru_cache
def _table(polynomial: int, width: int) -> tuple[int, ...]:
    """Checksum of each byte."""
    values = []
    for byte in range(256):
        value = byte << width - 8
        for _ in range(8):
            value = value << 1 ^ (1 << width | polynomial if value >> width - 1 else 0)
        values.append(value)
    return tuple(values)


def _moved(changes: list[int], counts: list[int]) -> Any:
    """Changes of 16-bit checksums, each moved past as many bytes: products of polynomials, int64."""
    change, moved = np.array(changes), np.zeros(len(changes), np.int64)
    factor = _factors(1 << max(counts).bit_length())[counts]
    polynomial, width = _CRC_16
    for bit in range(width):
        moved ^= np.where(change >> bit & 1, factor, 0)
        factor = factor << 1 ^ np.where(factor >> width - 1, 1 << width | polynomial, 0)
    return moved


@lru_cache
def _factors(count: int) -> Any:
    """What a change of 1 becomes past 0, 1, ... bytes."""
    table, factors = _table(*_CRC_16), [1]
    for _ in range(count - 1):
        factors.append((factors[-1] << 8 & 0xFFFF) ^ table[factors[-1] >> 8])
    return np.array(factors)
