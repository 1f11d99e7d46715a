"""Mode understand on a recording: VAE encode, audio tokenizer, audio codes, metadata (R55)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from acestep import checkpoints
from acestep.blueprints import understand_music, understand_recording
from acestep.checkpoints import TINY_LM, ModelSelection, load_audio_encoder, load_planner
from acestep.errors import AudioReadError, InvalidRequest
from acestep.renderer import audio_encoder
from acestep.types import SongwritingSettings
from acestep_otel import semconv
from acestep_otel.profiler.cli import main
from acestep_otel.profiler.report.breakdown import Breakdown
from acestep_otel.profiler.report.spans import Run, measured_runs
from acestep_otel.profiler.report.terminal import render_breakdown
from tests.profiler.outputs import OUTPUTS, result, traced

SHORT = ("--tiny", "--device", "cpu", "--mode", "understand", "--lyrics-token-limit", "16")
SETTINGS = SongwritingSettings(seed=3, lyrics_token_limit=8)


def write(name: str, seconds: float, *, rate: int = 48_000, channels: int = 2) -> Path:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (round(seconds * rate), channels))
    soundfile.write(name, samples, rate)
    return Path(name)


def understand(*arguments: str) -> int:
    return main([*SHORT, *OUTPUTS, *arguments])


def measured() -> Run:
    (run,) = measured_runs(traced(), semconv.UNDERSTAND_MUSIC)
    return run


def test_a_recording_is_described_and_its_encoding_has_rows_that_sum(capsys: pytest.CaptureFixture[str]) -> None:
    """R55."""
    assert understand("--src-audio", str(write("song.wav", 12))) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "60 audio codes (12 s), encoded by the audio tokenizer of acestep-v15-tiny\n" in shown.out
    breakdown = Breakdown.of(measured())
    assert render_breakdown(breakdown) in shown.out
    assert "  VAE Encode  " in shown.out
    assert "  Audio Tokenizer  " in shown.out
    assert breakdown.vae_encode > 0
    assert breakdown.audio_tokenization > 0

    entry = result()
    assert entry["effective_settings"]["audio_encoder"] == "acestep-v15-tiny"
    stages = entry["measurement"]["stages"]
    assert stages["vae_encode"]["total"] == breakdown.vae_encode
    assert stages["audio_tokenization"]["total"] == breakdown.audio_tokenization
    assert sum(stage["total"] for stage in stages.values()) == pytest.approx(entry["measurement"]["wall"], abs=1e-9)
    assert entry["blueprint"]["metadata"]["bpm"] is not None


def test_its_spans_lie_below_the_root_in_the_order_of_the_work() -> None:
    """R55."""
    assert understand("--no-warmup", "--src-audio", str(write("song.wav", 25))) == 0
    run = measured()
    below = [span for span in run.spans if span.parent_id == run.root.span_id]
    assert [span.name for span in below] == [semconv.VAE_ENCODE, semconv.AUDIO_TOKENIZE, semconv.LM]
    encode, tokenize, _ = below
    assert encode.attributes[semconv.LATENT_FRAMES] == tokenize.attributes[semconv.LATENT_FRAMES] == 625
    assert encode.attributes[semconv.VAE_TILES] == 2
    assert tokenize.attributes[semconv.AUDIO_CODES_COUNT] == 125
    assert run.root.attributes[semconv.AUDIO_CODES_COUNT] == 125
    loaded = [span.attributes[semconv.MODEL_ROLE] for span in traced() if span.name == semconv.MODEL_LOAD]
    assert loaded == ["audio_encoder", "planner"]


def test_no_renderer_is_loaded_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """R55."""

    def renderer(*_arguments: object) -> None:
        raise AssertionError("a renderer was loaded")

    monkeypatch.setattr(checkpoints, "load_renderer_models", renderer)
    assert understand("--no-warmup", "--src-audio", str(write("song.wav", 1))) == 0
    assert not Path("output").exists()


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (44_100, 2), (96_000, 6)])
def test_any_rate_and_number_of_channels(rate: int, channels: int) -> None:
    assert understand("--no-warmup", "--src-audio", str(write("song.flac", 2, rate=rate, channels=channels))) == 0
    assert measured().root.attributes[semconv.AUDIO_CODES_COUNT] == 10


def test_the_longest_recording_fits_beside_its_lyrics(monkeypatch: pytest.MonkeyPatch) -> None:
    # What encodes ten minutes is tested where it is built; here it is the language model's turn.
    def heard(self: audio_encoder.AudioEncoder, recording: torch.Tensor) -> tuple[int, ...]:
        return (7,) * (recording.shape[-1] // 9_600)

    monkeypatch.setattr(audio_encoder.AudioEncoder, "codes", heard)
    assert understand("--no-warmup", "--src-audio", str(write("song.wav", 600, rate=8_000, channels=1))) == 0
    assert measured().root.attributes[semconv.AUDIO_CODES_COUNT] == 3_000


@pytest.mark.parametrize(
    ("seconds", "error"),
    [(0.1, "0.1 s is too short"), (601, "lasts 601 s: the models accept at most 600 s"), (0, "no audio")],
)
def test_what_is_too_short_or_too_long_is_refused_before_models_are_loaded(
    seconds: float, error: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkpoints, "load_audio_encoder_models", None)
    monkeypatch.setattr(checkpoints, "load_language_model", None)
    assert understand("--src-audio", str(write("song.wav", seconds, rate=8_000, channels=1))) == 2
    shown = capsys.readouterr()
    assert error in shown.err
    assert len(shown.err.splitlines()) == 1
    assert shown.out == ""


def test_a_file_that_is_no_audio_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("song.wav").write_text("no music")
    assert understand("--src-audio", "song.wav") == 2
    assert capsys.readouterr().err.startswith("error: song.wav cannot be read as audio")


def test_codes_and_a_recording_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert understand("--src-audio", "song.wav", "--audio-codes", "1") == 2
    assert capsys.readouterr().err == "error: --src-audio and --audio-codes are two inputs: give one of them\n"


def test_out_of_memory_keeps_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_arguments: object) -> None:
        raise torch.OutOfMemoryError("no room for 3 GiB")

    monkeypatch.setattr(audio_encoder, "encode", fail)
    assert understand("--no-warmup", "--src-audio", str(write("song.wav", 1))) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("error: out of memory in stage 'vae.encode'")
    assert "TIME COSTS BREAKDOWN" in shown.out
    entry = result()
    assert entry["error"]["stage"] == "vae.encode"
    assert entry["measurement"]["stages"]["vae_encode"]["total"] > 0


# The verb


@pytest.fixture(scope="module")
def loaded():  # type: ignore[no-untyped-def]
    selection = ModelSelection(dit="acestep-v15-tiny", lm=TINY_LM, device="cpu")
    return load_planner(selection), load_audio_encoder(selection)


def test_the_codes_of_the_encoder_are_described(loaded) -> None:  # type: ignore[no-untyped-def]
    planner, encoder = loaded
    blueprint = understand_recording(planner, encoder, write("song.wav", 2), settings=SETTINGS)
    assert len(blueprint.audio_codes) == 10
    assert blueprint.effective.audio_encoder == "acestep-v15-tiny"
    same = understand_music(planner, blueprint.audio_codes, settings=SETTINGS)
    assert (same.metadata, same.lyrics, same.audio_codes) == (
        blueprint.metadata, blueprint.lyrics, blueprint.audio_codes,
    )  # fmt: skip
    assert same.effective.audio_encoder is None


def test_the_verb_refuses_settings_and_files_before_it_encodes(  # type: ignore[no-untyped-def]
    loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner, encoder = loaded
    monkeypatch.setattr(encoder.models.vae, "encode", None)
    with pytest.raises(InvalidRequest, match="`lyrics_token_limit` 0"):
        understand_recording(planner, encoder, write("a.wav", 1), settings=SongwritingSettings(lyrics_token_limit=0))
    with pytest.raises(AudioReadError, match="no audio file"):
        understand_recording(planner, encoder, Path("nothing.wav"))
    with pytest.raises(AudioReadError, match="too short"):
        understand_recording(planner, encoder, write("b.wav", 0.1))
