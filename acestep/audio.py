"""Reading and writing audio: files, sample rates, channels and levels."""

from __future__ import annotations

import io
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import soundfile
import soxr
import torch

from acestep.documents import is_lfs_pointer, is_text, shown
from acestep.errors import AudioReadError, AudioWriteError
from acestep.flac import encode_flac
from acestep.types import SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """A file format in libsndfile's terms.

    Attributes:
        container: major format, for example ``FLAC``.
        encoding: subtype, for example ``PCM_16``.
        suffix: of the file's name.
    """

    container: str
    encoding: str
    suffix: str


AUDIO_FORMATS: Final = {
    "flac": AudioFormat("FLAC", "PCM_16", ".flac"),
    "wav": AudioFormat("WAV", "PCM_16", ".wav"),
    "wav32": AudioFormat("WAV", "FLOAT", ".wav"),
    "mp3": AudioFormat("MP3", "MPEG_LAYER_III", ".mp3"),
    "ogg": AudioFormat("OGG", "VORBIS", ".ogg"),
    "opus": AudioFormat("OGG", "OPUS", ".opus"),
}
"""Formats by the name that a request uses.

16 bits where the format stores integers: their noise floor (-96 dBFS) is below what a bfloat16 decoder resolves, and
24 bits would store that decoder's rounding noise at half as much again. ``wav32`` keeps every bit.
"""

MAX_RECORDING_SECONDS: Final = 600
"""Longest recording that is read: what the models render at most."""
SILENCE_PEAK: Final = 1e-4
"""Peak (-80 dBFS) below which a recording has no audible content, only the noise floor of a 16-bit converter."""

# The stack memory of libsndfile's Vorbis encoder grows with the size of a write: it crashes on a whole song.
_BLOCK_SAMPLES: Final = 65_536
FLAC_EFFORT: Final = 0.5
"""Compression level of libFLAC (0 to 1, 0.625 by default). Its adaptive stereo decorrelation is a sixth faster, and the
files are within 0.1 % of the size."""
_UNKNOWN_FRAMES: Final = 2**62
"""Length that libsndfile reports (this or more) when the header of a FLAC file has none."""
_HEADER_BYTES: Final = 4_096
_TOLERATED_SAMPLES: Final = 4_608
"""Four frames of MP3, whose header may count the encoder's padding."""
_TO_THE_END: Final = b"\xff" * 4
"""A size in a WAV header that libsndfile reads as "to the end of the file"."""


def available_formats() -> tuple[str, ...]:
    """Names of ``AUDIO_FORMATS`` that this machine's libsndfile can write."""
    return tuple(
        name for name, entry in AUDIO_FORMATS.items() if soundfile.check_format(entry.container, entry.encoding)
    )


def require_format(name: str) -> AudioFormat:
    """The format of that name.

    Raises:
        AudioWriteError: it is unknown, or this machine's libsndfile cannot write it.
    """
    names = available_formats()
    if name not in names:
        raise AudioWriteError(f"`audio_format` {name!r} cannot be written here: choose one of {', '.join(names)}")
    return AUDIO_FORMATS[name]


def save_audio(audio: torch.Tensor, path_stem: Path, format: str = "flac", threads: int = 1) -> Path:
    """Write one song, whole or not at all.

    Args:
        audio: float32 on the host, shape ``[2, samples]``, 48 kHz.
        path_stem: path of the file, without the suffix.
        format: a name of ``AUDIO_FORMATS``.
        threads: that may encode, where the format allows for several.

    Returns:
        Path of the file. A file of that name is replaced.

    Raises:
        AudioWriteError: a format that cannot be written here, or a file that cannot be (directory, full disk).
    """
    path = song_path(path_stem, format)
    try:
        _write_atomically(path, _encode(audio, require_format(format), threads))
    except (OSError, soundfile.SoundFileError) as error:
        raise AudioWriteError(f"{path} could not be written: {error}") from error
    return path


def song_path(path_stem: Path, format: str) -> Path:
    """Where ``save_audio`` writes a song.

    Raises:
        AudioWriteError: a format that cannot be written here.
    """
    return path_stem.with_name(path_stem.name + require_format(format).suffix)


def require_readable(path: Path) -> float:
    """Check by its header that a recording can be read and is not too long; decodes it if the header has no length.

    Returns:
        Its length in seconds.

    Raises:
        AudioReadError: no such file, not audio that libsndfile reads, empty, or longer than ``MAX_RECORDING_SECONDS``.
    """
    with _opened(path) as file:
        return _usable_seconds(path, file)


def load_audio(path: Path) -> torch.Tensor:
    """Read a recording in the form that the models use: 48 kHz stereo within -1 ... 1.

    Any format, rate and number of channels that libsndfile reads. One channel is doubled; of more than two the first
    two, the front pair, are taken. Other rates go through soxr's high-quality resampler.

    Returns:
        float32 on the host, shape ``[2, samples]``.

    Raises:
        AudioReadError: see ``require_readable``; also NaN or infinity among the samples.
    """
    with _opened(path) as file:
        _usable_seconds(path, file)
    # A recording without a declared length was read to its end to count its samples.
    with _opened(path) as file:
        rate = file.samplerate
        samples = _decoded(path, file)
    stereo = samples if samples.shape[1] > 1 else samples.repeat(2, axis=1)
    if rate != SAMPLE_RATE:
        stereo = soxr.resample(stereo, rate, SAMPLE_RATE, quality="HQ")
    return torch.from_numpy(np.ascontiguousarray(stereo.T)).clamp_(-1.0, 1.0)


def load_reference(path: Path) -> torch.Tensor:
    """Read a recording for its timbre (see ``load_audio``).

    Raises:
        AudioReadError: also when it is silent.
    """
    reference = load_audio(path)
    if reference.abs().max() < SILENCE_PEAK:
        raise AudioReadError(f"`reference_audio` {path} is silent: it has no timbre to follow")
    return reference


def check_output_directory(path: Path) -> None:
    """Create the output directory and check that it is writable, before any song is generated.

    Raises:
        AudioWriteError: it cannot be created, or is not writable.
    """
    if not is_text(str(path)):
        raise AudioWriteError(f"the name of the output directory {shown(path)} is not UTF-8: choose another")
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise AudioWriteError(f"output directory {path} cannot be written to: {error.strerror}") from error


def normalise_peak(audio: torch.Tensor, dbfs: float) -> torch.Tensor:
    """Scale each song in place, so that its loudest sample has a given level; silence stays silence.

    Args:
        audio: shape ``[..., channels, samples]``; the channels of a song share one gain.
        dbfs: level in dB below full scale, 0 or less.
    """
    peak = _peak(audio)
    return audio.mul_(torch.where(peak > 0, 10.0 ** (dbfs / 20.0) / peak, 1.0))


def prevent_clipping(audio: torch.Tensor) -> torch.Tensor:
    """Scale each song that is louder than full scale down to it, in place (shape ``[..., channels, samples]``)."""
    # Without asking whether it is louder: the answer of a GPU would have to be waited for.
    return audio.div_(_peak(audio).clamp(min=1.0))


class _Stream(soundfile.SoundFile):  # type: ignore[misc]
    """A recording that is only read in order: without a length in its header, seeking is not possible."""

    def seekable(self) -> bool:
        return False


class _Piped(io.FileIO):
    """A WAV file that was written through a pipe, read as if its size fields meant "to the end of the file".

    Args:
        path: of the file.
        sizes: offsets of its two size fields, that of the whole file and that of the data.
    """

    def __init__(self, path: Path, sizes: tuple[int, ...]) -> None:
        super().__init__(path)
        self._sizes = sizes

    def readinto(self, buffer: Any) -> int:
        start = self.tell()
        count = super().readinto(buffer) or 0
        view = memoryview(buffer).cast("B")
        for size in self._sizes:
            for place, byte in enumerate(_TO_THE_END, start=size - start):
                if 0 <= place < count:
                    view[place] = byte
        return count


@contextmanager
def _sound_file(path: Path) -> Iterator[_Stream]:
    """Open a recording, whether or not its header was completed."""
    with _Stream(path) as file:
        sizes = _missing_sizes(path, file)
        if not sizes:
            yield file
            return
    with _Piped(path, sizes) as raw, _Stream(raw) as file:
        yield file


def _missing_sizes(path: Path, file: _Stream) -> tuple[int, ...]:
    """Offsets of the size fields of a WAV file that were never filled in; empty for any other file."""
    if file.frames or file.format not in ("WAV", "WAVEX"):
        return ()
    with path.open("rb") as raw:
        beginning = raw.read(_HEADER_BYTES)
    chunk = beginning.find(b"data")
    return (4, chunk + 4) if chunk >= 0 and path.stat().st_size > chunk + 8 else ()


def _usable_seconds(path: Path, file: _Stream) -> float:
    """Length of an open recording, after checking that it is neither empty nor too long."""
    frames = file.frames
    if frames >= _UNKNOWN_FRAMES:
        frames = sum(len(block) for block in _blocks(path, file))
    if frames == 0:
        raise AudioReadError(f"{path} contains no audio")
    seconds: float = frames / file.samplerate
    if seconds > MAX_RECORDING_SECONDS:
        raise AudioReadError(f"{path} lasts {seconds:g} s: the models accept at most {MAX_RECORDING_SECONDS} s")
    return seconds


def _blocks(path: Path, file: _Stream) -> Iterator[Any]:
    """Decoded samples, in order; reading stops with an error beyond the maximum length."""
    count, most = 0, MAX_RECORDING_SECONDS * file.samplerate
    while True:
        block = file.read(_BLOCK_SAMPLES, dtype="float32", always_2d=True)
        count += len(block)
        if count > most + _TOLERATED_SAMPLES:
            raise AudioReadError(f"{path} lasts longer than the {MAX_RECORDING_SECONDS} s that the models accept")
        yield block
        if len(block) < _BLOCK_SAMPLES:
            return


def _decoded(path: Path, file: _Stream) -> Any:
    """Samples of the first two channels, shape ``[samples, channels]``; as many as the header declares, if it does."""
    blocks = []
    for block in _blocks(path, file):
        if not np.isfinite(block).all():
            raise AudioReadError(f"{path} contains NaN or infinity: export it again")
        blocks.append(block[:, :2].copy())
    samples = np.concatenate(blocks)
    # libsndfile never returns more than the header declares, and returns less without an error.
    if len(samples) < file.frames - _TOLERATED_SAMPLES and file.frames < _UNKNOWN_FRAMES:
        raise AudioReadError(
            f"{path} declares {file.frames:,} samples and contains {len(samples):,}: it is truncated; "
            "`ffmpeg -i IN -c:a flac OUT.flac` keeps the existing part"
        )
    return samples


@contextmanager
def _opened(path: Path) -> Iterator[_Stream]:
    """Open a recording; what goes wrong gets its type and its name."""
    name = shown(path)
    if not is_text(str(path)):
        raise AudioReadError(f"the name {name} is not UTF-8: rename the file")
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise AudioReadError(f"no audio file {name}") from error
    if not stat.S_ISREG(status.st_mode):
        raise AudioReadError(f"no audio file {name}: it is a folder, a pipe or a device")
    try:
        if is_lfs_pointer(path, status.st_size):
            raise AudioReadError(f"{name} is a Git LFS pointer, not the recording: run `git lfs pull`")
        with _sound_file(path) as file:
            yield file
    # libsndfile's wrapper raises TypeError for headerless formats, which do not say their rate and channels.
    except (OSError, soundfile.SoundFileError, TypeError, ValueError, RuntimeError) as error:
        raise AudioReadError(f"{name} cannot be read as audio: {error}") from error


def _peak(audio: torch.Tensor) -> torch.Tensor:
    # Without the copy that abs() makes: three times as fast over minutes of audio.
    samples = audio.flatten(-2)
    return torch.maximum(samples.amax(dim=-1), -samples.amin(dim=-1))[..., None, None]


def _encode(audio: torch.Tensor, entry: AudioFormat, threads: int) -> bytes:
    samples: Any = RoundedSamples(audio) if entry.encoding == "PCM_16" else audio.T.contiguous().numpy()
    if entry.container == "FLAC":
        return encode_flac(samples, SAMPLE_RATE, FLAC_EFFORT, threads)
    # In memory first: libsndfile does not report a full disk, and closes with a file that looks whole.
    buffer = io.BytesIO()
    with soundfile.SoundFile(
        buffer, "w", SAMPLE_RATE, channels=audio.shape[0], format=entry.container, subtype=entry.encoding
    ) as file:
        for start in range(0, len(samples), _BLOCK_SAMPLES):
            file.write(samples[start : start + _BLOCK_SAMPLES])
    return buffer.getvalue()


class RoundedSamples:
    """A song in 16 bits, computed for the slice that is read: rounded as libsndfile does it, full scale at most.

    Args:
        audio: float32 on the host, shape ``[channels, samples]``.
    """

    def __init__(self, audio: torch.Tensor) -> None:
        self._audio = audio.numpy()

    def __len__(self) -> int:
        return int(self._audio.shape[1])

    def __getitem__(self, samples: slice) -> np.ndarray[tuple[int, int], np.dtype[np.int16]]:
        """int16, shape ``[samples, channels]``."""
        audio = self._audio[:, samples]
        rounded = np.empty((audio.shape[1], audio.shape[0]), np.int16)
        # In blocks that stay in the processor's cache.
        for start in range(0, len(rounded), _BLOCK_SAMPLES):
            block = audio[:, start : start + _BLOCK_SAMPLES] * np.float32(32_768)
            np.clip(np.rint(block, out=block), -32_768, 32_767, out=block)
            rounded[start : start + _BLOCK_SAMPLES] = block.T
        return rounded


def _write_atomically(path: Path, content: bytes) -> None:
    """Replace a regular file, keeping its mode and, where allowed, its owner; write directly to anything else."""
    target = path.resolve() if path.is_symlink() else path
    before = target.stat() if target.exists() else None
    if before is not None and not stat.S_ISREG(before.st_mode):
        target.write_bytes(content)
        return
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            if before is not None and hasattr(os, "fchmod"):
                with suppress(PermissionError):
                    os.fchown(file.fileno(), before.st_uid, before.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
            file.write(content)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
