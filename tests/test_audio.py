"""Songs reach the disk at the right level and whole or not at all; every recording is read as 48 kHz stereo."""

from __future__ import annotations

import io
import os
import resource
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep import audio
from acestep.errors import AudioReadError, AudioWriteError


def tone(seconds: float = 0.5, amplitude: float = 0.5) -> torch.Tensor:
    t = torch.arange(int(seconds * 48_000)) / 48_000
    return torch.stack([torch.sin(2 * torch.pi * 440 * t), torch.sin(2 * torch.pi * 660 * t)]) * amplitude


@pytest.mark.parametrize(
    ("name", "suffix", "subtype", "tolerance"),
    [
        ("flac", ".flac", "PCM_16", 1e-4),
        ("wav", ".wav", "PCM_16", 1e-4),
        ("wav32", ".wav", "FLOAT", 0.0),
        ("mp3", ".mp3", "MPEG_LAYER_III", None),
        ("ogg", ".ogg", "VORBIS", None),
        ("opus", ".opus", "OPUS", None),
    ],
)
def test_every_format_is_48_khz_stereo_and_plays_what_was_saved(tmp_path, name, suffix, subtype, tolerance):
    song = tone()
    path = audio.save_audio(song, tmp_path / "song.v1", name)
    assert path == tmp_path / f"song.v1{suffix}"
    info = soundfile.info(path)
    assert (info.samplerate, info.channels, info.subtype) == (48_000, 2, subtype)
    read, _ = soundfile.read(path, dtype="float32")
    read = torch.from_numpy(read).T
    if tolerance is None:
        length = song.shape[1]
        assert length <= read.shape[1] <= length + 2_400
        # A coder may delay, so power is compared rather than samples.
        assert read.square().sum() == pytest.approx(song.square().sum().item(), rel=0.1)
    else:
        assert read.shape == song.shape
        assert (read - song).abs().max() <= tolerance


def test_a_long_song_is_encoded_to_ogg_in_blocks(tmp_path):
    path = audio.save_audio(tone(seconds=60), tmp_path / "long", "ogg")
    assert soundfile.info(path).duration == pytest.approx(60)


def test_an_unknown_format_names_those_available(tmp_path):
    with pytest.raises(AudioWriteError, match=r"'aac'.*flac.*wav32") as raised:
        audio.save_audio(tone(), tmp_path / "song", "aac")
    assert raised.value.stage == "audio.save"
    assert list(tmp_path.iterdir()) == []


def test_a_format_that_libsndfile_lacks_is_not_offered(monkeypatch, tmp_path):
    monkeypatch.setattr(soundfile, "check_format", lambda container, encoding: container == "WAV")
    assert audio.available_formats() == ("wav", "wav32")
    assert audio.require_format("wav").suffix == ".wav"
    with pytest.raises(AudioWriteError, match="choose one of wav, wav32"):
        audio.save_audio(tone(), tmp_path / "song", "flac")


def test_a_full_disk_leaves_no_half_song_and_keeps_the_old_one(tmp_path):
    path = audio.save_audio(tone(0.1), tmp_path / "song", "wav")
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(AudioWriteError, match=r"song\.wav could not be written") as raised:
            audio.save_audio(tone(2.0), tmp_path / "song", "wav")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(raised.value.__cause__, OSError)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def test_a_song_that_is_replaced_keeps_its_mode_and_a_link_stays_one(tmp_path):
    """N1."""
    kept = tmp_path / "kept.wav"
    kept.write_bytes(b"old")
    kept.chmod(0o600)
    (tmp_path / "song.wav").symlink_to(kept)
    assert audio.save_audio(tone(), tmp_path / "song", "wav") == tmp_path / "song.wav"
    assert (tmp_path / "song.wav").is_symlink()
    assert kept.stat().st_mode & 0o777 == 0o600
    assert soundfile.info(kept).frames == 24_000
    assert {path.name for path in tmp_path.iterdir()} == {"kept.wav", "song.wav"}


def test_a_song_is_written_through_a_pipe_and_does_not_take_its_place(tmp_path):
    """N1."""
    os.mkfifo(tmp_path / "song.wav")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "song.wav").read_bytes()))
    reader.start()
    audio.save_audio(tone(), tmp_path / "song", "wav")
    reader.join(30)
    assert (tmp_path / "song.wav").is_fifo()
    assert soundfile.info(io.BytesIO(read[0])).frames == 24_000


def test_a_directory_that_is_not_there_is_one_clear_error(tmp_path):
    with pytest.raises(AudioWriteError, match="missing"):
        audio.save_audio(tone(), tmp_path / "missing" / "song")


def test_output_directory_is_made_and_left_empty(tmp_path):
    directory = tmp_path / "a" / "b"
    audio.check_output_directory(directory)
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("name", ["flac", "wav"])
def test_samples_are_rounded_to_the_nearest_and_stop_at_full_scale(tmp_path, name):
    steps = torch.tensor([0.0, 0.49, 0.51, -0.49, -0.51, 40_000.0, -40_000.0]) / 32_768
    path = audio.save_audio(torch.stack([steps, steps]), tmp_path / "song", name)
    read, _ = soundfile.read(path, dtype="int16")
    assert read[:, 0].tolist() == [0, 0, 1, 0, -1, 32_767, -32_768]


@pytest.mark.parametrize("scale", [audio.prevent_clipping, lambda song: audio.normalise_peak(song, -1.0)])
def test_a_level_is_set_in_place(scale):
    song = tone(amplitude=2.0)
    assert scale(song) is song
    assert song.abs().max() <= 1.0


@pytest.mark.parametrize("directory", ["file", "file/below", "/proc/songs"])
def test_an_output_directory_that_cannot_be_written_to_is_refused(tmp_path, directory):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(AudioWriteError, match="cannot be written to"):
        audio.check_output_directory(tmp_path / directory)


@given(st.floats(1e-4, 50.0), st.floats(-40.0, 0.0))
def test_the_peak_of_every_song_ends_at_the_level_asked_for(amplitude, dbfs):
    songs = torch.stack([tone(0.01, amplitude), tone(0.01, amplitude / 3)])
    peaks = audio.normalise_peak(songs, dbfs).abs().amax(dim=(1, 2))
    assert torch.allclose(peaks, torch.full((2,), 10 ** (dbfs / 20)), rtol=1e-5)


def test_both_channels_of_a_song_share_one_gain():
    song = tone()
    song[1] *= 0.25
    levelled = audio.normalise_peak(song.clone(), -1.0)
    assert torch.allclose(levelled[1] / levelled[0].abs().max(), song[1] / song[0].abs().max(), atol=1e-6)


def test_silence_stays_silence():
    silence = torch.zeros(2, 100)
    assert torch.equal(audio.normalise_peak(silence.clone(), -1.0), silence)
    assert torch.equal(audio.prevent_clipping(silence.clone()), silence)


def test_clipping_is_prevented_and_a_quiet_song_is_unchanged():
    assert audio.prevent_clipping(tone(amplitude=3.0)).abs().max() == pytest.approx(1.0)
    quiet = tone(amplitude=0.2)
    assert torch.equal(audio.prevent_clipping(quiet.clone()), quiet)


def test_the_path_stem_keeps_its_dots(tmp_path: Path):
    assert audio.save_audio(tone(0.1), tmp_path / "take.2.final").name == "take.2.final.flac"


def recording(path: Path, rate: int, channels: int, seconds: float = 1.0, **settings: str) -> Path:
    """Channel c plays 200 * (c + 1) Hz at an amplitude of 0.5 / (c + 1)."""
    t = np.arange(int(seconds * rate)) / rate
    waves = [np.sin(2 * np.pi * 200 * (c + 1) * t) * 0.5 / (c + 1) for c in range(channels)]
    soundfile.write(path, np.stack(waves, axis=1), rate, **settings)
    return path


@pytest.mark.parametrize(
    ("name", "rate", "channels", "tolerance"),
    [
        ("mono.wav", 8_000, 1, 1e-3),
        ("cd.flac", 44_100, 2, 1e-3),
        ("studio.aiff", 96_000, 2, 1e-3),
        ("same.flac", 48_000, 2, 1e-4),
        ("surround.wav", 44_100, 6, 1e-3),
        ("three.wav", 48_000, 3, 1e-4),
        ("coded.ogg", 44_100, 2, 0.05),
        ("coded.mp3", 44_100, 2, 0.05),
    ],
)
def test_every_recording_is_heard_as_48_khz_stereo(tmp_path, name, rate, channels, tolerance):
    """Mono is doubled, and of more than two channels the front pair is taken."""
    heard = audio.load_audio(recording(tmp_path / name, rate, channels))
    assert (heard.dtype, heard.shape[0]) == (torch.float32, 2)
    assert heard.shape[1] == pytest.approx(48_000, abs=2_400 if tolerance > 0.01 else 2)
    t = torch.arange(heard.shape[1]) / 48_000
    left = torch.sin(2 * torch.pi * 200 * t) * 0.5
    right = left if channels == 1 else torch.sin(2 * torch.pi * 400 * t) * 0.25
    # The ends of a resampled or coded recording ring.
    middle = slice(10_000, 38_000)
    assert (heard[:, middle] - torch.stack([left, right])[:, middle]).abs().max() < tolerance


def test_a_16_bit_recording_at_48_khz_is_read_to_the_bit(tmp_path):
    samples = np.random.default_rng(0).integers(-32_768, 32_768, (1_000, 2), dtype=np.int16)
    soundfile.write(tmp_path / "exact.wav", samples, 48_000)
    assert torch.equal(audio.load_audio(tmp_path / "exact.wav"), torch.from_numpy(samples.T / np.float32(32_768)))


def test_what_is_above_full_scale_is_clipped(tmp_path):
    soundfile.write(tmp_path / "loud.wav", np.full((100, 2), 3.0), 48_000, subtype="FLOAT")
    assert torch.equal(audio.load_audio(tmp_path / "loud.wav"), torch.ones(2, 100))


def broken(path: Path) -> Path:
    path.write_bytes(b"RIFF\x00\x00\x00\x00WAVE but not really")
    return path


def samples_of(path: Path, samples: np.ndarray, rate: int = 48_000) -> Path:
    soundfile.write(path, samples, rate, subtype="FLOAT")
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "missing.wav", "no audio file"),
        (lambda folder: folder, "no audio file"),
        (lambda folder: broken(folder / "broken.wav"), "cannot be read as audio"),
        (lambda folder: broken(folder / "headerless.raw"), "cannot be read as audio"),
        (lambda folder: samples_of(folder / "empty.wav", np.zeros((0, 2))), "contains no audio"),
        (lambda folder: samples_of(folder / "nan.wav", np.array([[0.1, np.nan]])), "NaN or infinity"),
        (lambda folder: samples_of(folder / "inf.wav", np.array([[0.1], [-np.inf]])), "NaN or infinity"),
        (
            lambda folder: samples_of(folder / "long.wav", np.zeros(601_000), 1_000),
            "lasts 601 s: the models accept at most 600 s",
        ),
    ],
)
def test_a_recording_that_cannot_be_used_is_one_error_that_names_it(tmp_path, make, message):
    path = make(tmp_path)
    with pytest.raises(AudioReadError, match=message) as raised:
        audio.load_audio(path)
    assert str(path) in str(raised.value)
    assert raised.value.stage == "request"


@pytest.mark.parametrize("level", [0.0, 0.5e-4])
def test_a_silent_reference_has_no_timbre(tmp_path, level):
    path = samples_of(tmp_path / "silence.wav", np.full((1_000, 2), level))
    with pytest.raises(AudioReadError, match="silent"):
        audio.load_reference(path)
    assert audio.load_audio(path).shape == (2, 1_000)


def test_a_quiet_reference_is_heard(tmp_path):
    path = samples_of(tmp_path / "quiet.wav", np.full((1_000, 2), 1e-3))
    assert torch.equal(audio.load_reference(path), audio.load_audio(path))


def through_a_pipe(path: Path, format: str, seconds: float = 0.5) -> Path:
    """A recording as a program leaves it that could not go back to complete the header."""
    soundfile.write(path, tone(seconds).T.numpy(), 48_000, format=format)
    content = bytearray(path.read_bytes())
    if format == "WAV":
        sizes = content.index(b"data") + 4
        content[4:8] = content[sizes : sizes + 4] = bytes(4)
    else:
        # STREAMINFO ends with 36 bits of total samples and an MD5 sum.
        content[21] &= 0xF0
        content[22:26] = bytes(4)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("format", ["WAV", "FLAC"])
@pytest.mark.parametrize("seconds", [0.5, 2 * 65_536 / 48_000, 3.0])
def test_a_recording_whose_header_does_not_say_its_length_is_decoded_and_counted(tmp_path, format, seconds):
    """N8."""
    whole = tmp_path / "whole"
    soundfile.write(whole, tone(seconds).T.numpy(), 48_000, format=format)
    piped = through_a_pipe(tmp_path / "piped", format, seconds)
    assert piped.read_bytes() != whole.read_bytes()
    assert audio.require_readable(piped) == pytest.approx(seconds)
    assert torch.equal(audio.load_audio(piped), audio.load_audio(whole))


@pytest.mark.parametrize("format", ["WAV", "FLAC"])
@pytest.mark.parametrize("read", [audio.require_readable, audio.load_audio])
def test_a_length_that_is_not_declared_has_the_same_limit(tmp_path, monkeypatch, format, read):
    monkeypatch.setattr(audio, "MAX_RECORDING_SECONDS", 2)
    with pytest.raises(
        AudioReadError, match=r"lasts 3 s: the models accept at most 2 s|lasts longer than the 2 s that"
    ):
        read(through_a_pipe(tmp_path / "piped", format, 3.0))


def test_a_flac_file_without_a_length_that_is_cut_off_is_one_error(tmp_path):
    path = through_a_pipe(tmp_path / "piped.flac", "FLAC", 3.0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(AudioReadError, match="cannot be read as audio"):
        audio.load_audio(path)


@pytest.mark.parametrize("encoding", ["PCM_16", "PCM_24", "FLOAT", "ULAW", "IMA_ADPCM"])
def test_every_encoding_of_a_piped_wav_file_is_read_to_its_end(tmp_path, encoding):
    path = tmp_path / "song.wav"
    soundfile.write(path, tone(2.0).T.numpy(), 48_000, subtype=encoding)
    whole = audio.load_audio(path)
    content = bytearray(path.read_bytes())
    sizes = content.index(b"data") + 4
    content[4:8] = content[sizes : sizes + 4] = bytes(4)
    path.write_bytes(content)
    assert torch.equal(audio.load_audio(path), whole)


@pytest.mark.parametrize(("declared", "heard"), [(10_000, 10_000), (60_000, None)])
def test_no_more_than_is_declared_is_read_from_a_flac_file_and_less_is_refused(tmp_path, declared, heard):
    """N8: what was decoded is compared with what was declared."""
    path = tmp_path / "song.flac"
    soundfile.write(path, tone(0.5).T.numpy(), 48_000)
    content = bytearray(path.read_bytes())
    content[22:26] = declared.to_bytes(4, "big")
    path.write_bytes(content)
    if heard is None:
        with pytest.raises(AudioReadError, match="declares 60,000 samples and contains 24,000: it is truncated"):
            audio.load_audio(path)
    else:
        assert audio.load_audio(path).shape == (2, heard)


def test_a_wav_file_whose_size_is_all_ones_is_as_long_as_its_file(tmp_path):
    path = through_a_pipe(tmp_path / "piped.wav", "WAV")
    content = bytearray(path.read_bytes())
    sizes = content.index(b"data") + 4
    content[4:8] = content[sizes : sizes + 4] = b"\xff" * 4
    path.write_bytes(content)
    assert audio.require_readable(path) == 0.5
    assert audio.load_audio(path).shape == (2, 24_000)


def test_an_empty_recording_is_still_called_empty(tmp_path):
    soundfile.write(tmp_path / "empty.wav", np.zeros((0, 2)), 48_000)
    with pytest.raises(AudioReadError, match="contains no audio"):
        audio.require_readable(tmp_path / "empty.wav")


def test_what_was_decoded_is_compared_with_what_was_declared(tmp_path):
    """N8: libsndfile decodes half an MP3 file without a word."""
    path = tmp_path / "song.mp3"
    soundfile.write(path, tone(2.0).T.numpy(), 48_000, format="MP3")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioReadError, match=r"declares 96,000 samples and contains [\d,]+: it is truncated"):
        audio.load_audio(path)


def test_a_pointer_of_git_lfs_is_named_as_one(tmp_path):
    path = tmp_path / "song.flac"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(AudioReadError, match="is a Git LFS pointer"):
        audio.require_readable(path)


def test_a_name_that_is_no_text_is_one_error(tmp_path):
    """N6: bytes outside UTF-8 in a file's name."""
    path = tmp_path / "\udcff.wav"
    soundfile.write(tmp_path / "song.wav", tone().T.numpy(), 48_000)
    (tmp_path / "song.wav").rename(path)
    with pytest.raises(AudioReadError, match=r"\\udcff\.wav is not UTF-8: rename the file"):
        audio.require_readable(path)
    with pytest.raises(AudioWriteError, match="is not UTF-8"):
        audio.check_output_directory(tmp_path / "\udcff")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "song.wav")
    with pytest.raises(AudioReadError, match="it is a folder, a pipe or a device"):
        audio.require_readable(tmp_path / "song.wav")


@given(st.binary(max_size=64), st.sampled_from(["WAV", "FLAC", "OGG", "MP3", "AIFF", "AU"]), st.integers(0, 120))
def test_any_header_is_a_recording_or_one_error(tmp_path_factory, noise, format, position):
    path = tmp_path_factory.getbasetemp() / "noise"
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(0.1).T.numpy(), 48_000, format=format)
    content = bytearray(buffer.getvalue())
    content[position : position + len(noise)] = noise
    path.write_bytes(content)
    with suppress(AudioReadError):
        assert audio.load_audio(path).isfinite().all()
