"""`generate_music` on recordings, from files to songs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from acestep.audio import load_audio
from acestep.checkpoints import TINY_BASE_DIT, TINY_LM, Models, ModelSelection, load_models
from acestep.errors import AudioReadError, InvalidRequest
from acestep.inference import generate_music
from acestep.types import SAMPLE_RATE, GenerationRequest, SongMetadata

SECONDS = 6


@pytest.fixture(scope="module")
def base_models() -> Models:
    return load_models(ModelSelection(dit=TINY_BASE_DIT, lm=TINY_LM, device="cpu"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A chord over noise at the rate of a CD."""
    rate = 44_100
    t = np.arange(SECONDS * rate) / rate
    noise = np.random.default_rng(0).normal(0, 0.02, (len(t), 2))
    chord = sum(np.sin(2 * np.pi * frequency * t) for frequency in (220, 277, 330)) * 0.1
    soundfile.write(tmp_path / "source.flac", chord[:, None] + noise, rate)
    return tmp_path / "source.flac"


def ask(task: str, source: Path, **changes) -> GenerationRequest:
    return replace(
        GenerationRequest(
            caption="bright synth pop",
            lyrics="[Verse]\nla la la",
            metadata=SongMetadata(bpm=120, keyscale="C major", timesignature="4", language="en"),
            task_type=task,
            src_audio=source,
            inference_steps=2,
            seeds=(7,),
        ),
        **changes,
    )


@pytest.mark.parametrize("task", ["cover", "repaint"])
def test_turbo_models_cover_and_repaint(tiny_models, source, task):
    """R135: the song is as long as its source, and is its seed's."""
    first, again = (generate_music(tiny_models, ask(task, source)) for _ in range(2))
    assert first.songs[0].audio.shape == (2, SECONDS * SAMPLE_RATE)
    assert first.effective.duration == SECONDS
    assert torch.equal(first.songs[0].audio, again.songs[0].audio)
    other = generate_music(tiny_models, ask(task, source, seeds=(8,)))
    assert (other.songs[0].audio - first.songs[0].audio).std() > 0.01


@pytest.mark.parametrize(
    ("task", "tracks"), [("lego", ("drums",)), ("extract", ("vocals",)), ("complete", ("drums", "bass"))]
)
def test_base_models_work_on_single_tracks(base_models, source, task, tracks):
    """R135: the tracks asked for reach the model."""
    named, plain = (
        generate_music(base_models, ask(task, source, track_names=names)).songs[0].audio for names in (tracks, ())
    )
    assert named.shape == (2, SECONDS * SAMPLE_RATE)
    assert (named - plain).abs().max() > 0.001


def test_a_repainted_file_is_its_source_outside_the_window_to_the_rounding_of_the_format(tiny_models, source, tmp_path):
    request = ask("repaint", source, repainting_start=2.0, repainting_end=3.5, batch_size=2, seeds=(1, 2))
    result = generate_music(tiny_models, request, save_dir=tmp_path / "songs")
    original = load_audio(source)
    start, stop = 2 * SAMPLE_RATE, int(3.5 * SAMPLE_RATE)
    for song in result.songs:
        saved = load_audio(song.path)
        for audio, rounding in ((song.audio, 0.0), (saved, 2 / 32_768)):
            assert (audio - original)[:, :start].abs().max() <= rounding
            assert (audio - original)[:, stop:].abs().max() <= rounding
            assert (audio - original)[:, start:stop].std() > 0.05


def test_repaint_makes_a_song_longer(tiny_models, source):
    longer = generate_music(tiny_models, ask("repaint", source, repainting_start=5.0, repainting_end=8.0))
    assert longer.effective.duration == 8.0
    assert torch.equal(longer.songs[0].audio[:, : 5 * SAMPLE_RATE], load_audio(source)[:, : 5 * SAMPLE_RATE])


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (3.0, 2.0, "window 3 ... 2 s is empty"),
        (7.0, 8.0, "does not touch the recording"),
        (-300.0, 306.0, "extends the recording to 606 s: 600 s at most"),
    ],
)
def test_a_window_that_does_not_fit_the_source_is_refused(tiny_models, source, start, end, message):
    with pytest.raises(InvalidRequest, match=message):
        generate_music(tiny_models, ask("repaint", source, repainting_start=start, repainting_end=end))


def test_a_cover_takes_the_text_as_it_is(tiny_models, source):
    """Thinking has nothing to add where the structure comes from the source."""
    result = generate_music(tiny_models, ask("cover", source, thinking=True, use_cot_caption=True))
    assert (result.effective.lm_model, result.songs[0].audio_codes) == (None, ())


def test_the_language_model_may_fill_in_the_metadata_of_a_track(base_models, source):
    request = ask("lego", source, thinking=True, use_cot_metas=True, metadata=SongMetadata(bpm=120))
    result = generate_music(base_models, request)
    assert result.effective.lm_model == TINY_LM
    assert result.metadata.keyscale is not None
    assert (result.songs[0].audio_codes, result.effective.duration) == ((), SECONDS)


def test_turbo_models_are_refused_for_single_tracks_before_any_work(tiny_models, source, tmp_path):
    with pytest.raises(InvalidRequest, match="`task_type` extract needs a base model"):
        generate_music(tiny_models, ask("extract", source), save_dir=tmp_path / "songs")
    assert not (tmp_path / "songs").exists()


def test_a_reference_changes_the_song_the_same_way_every_time(tiny_models, source):
    request = ask("text2music", source, src_audio=None, duration=10)
    plain = generate_music(tiny_models, request).songs[0].audio
    first, again = (
        generate_music(tiny_models, replace(request, reference_audio=source)).songs[0].audio for _ in range(2)
    )
    assert torch.equal(first, again)
    assert (first - plain).abs().max() > 0.01


def test_a_silent_reference_is_refused(tiny_models, source, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros((48_000, 2)), 48_000)
    with pytest.raises(AudioReadError, match=r"silence\.wav is silent"):
        generate_music(tiny_models, ask("cover", source, reference_audio=tmp_path / "silence.wav"))


@pytest.mark.parametrize("field", ["src_audio", "reference_audio"])
def test_a_song_never_replaces_the_recording_that_it_is_made_from(tiny_models, source, tmp_path, field):
    path = source.rename(tmp_path / "song-2-seed8.flac")
    before = path.read_bytes()
    request = ask("cover" if field == "src_audio" else "text2music", source, batch_size=2, src_audio=None)
    request = replace(request, **{field: path})
    with pytest.raises(InvalidRequest, match=r"would replace .*song-2-seed8\.flac: choose another output directory"):
        generate_music(tiny_models, request, save_dir=tmp_path / "." / "below" / "..")
    assert path.read_bytes() == before
    generate_music(tiny_models, request, save_dir=tmp_path / "songs")
