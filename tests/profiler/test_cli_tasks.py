"""Tasks on the command line: R127, R128 and R135."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from acestep import checkpoints
from acestep_otel import semconv
from acestep_otel.profiler.cli import main
from acestep_otel.profiler.options import Options
from acestep_otel.profiler.report.spans import FinishedSpan, measured_runs
from acestep_otel.profiler.run.example import Example
from acestep_otel.profiler.run.generation_request import build_request, select_models

SECONDS = 6
QUICK = ("--tiny", "--device", "cpu", "--inference-steps", "2", "--no-warmup", "--audio-format", "wav")


@pytest.fixture(autouse=True)
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SDK_DISABLED", "ACESTEP_OTEL_DETAIL"):
        monkeypatch.delenv(name, raising=False)
    samples = np.random.default_rng(0).normal(0, 0.1, SECONDS * 8_000)
    soundfile.write(tmp_path / "source.wav", samples, 8_000)
    return tmp_path / "source.wav"


@pytest.mark.parametrize(
    ("task", "more", "model", "seconds"),
    [
        ("cover", ["--audio-cover-strength", "0.5"], "acestep-v15-tiny", SECONDS),
        ("repaint", ["--repainting-start", "-1", "--repainting-end", "2"], "acestep-v15-tiny", SECONDS + 1),
        ("lego", ["--track", "drums", "--repainting-start", "2"], "acestep-v15-tiny-base", SECONDS),
        ("extract", ["--track", "vocals"], "acestep-v15-tiny-base", SECONDS),
        ("complete", ["--track", "drums", "--track", "bass"], "acestep-v15-tiny-base", SECONDS),
    ],
)
def test_every_task_runs_on_a_source(task: str, more: list[str], model: str, seconds: int) -> None:
    """R135: a song as long as its source; the trace says what was done and that the source was encoded."""
    assert main([*QUICK, "--trace-output", "trace.jsonl", "--task-type", task, "--src-audio", "source.wav", *more]) == 0
    (song,) = Path("output").iterdir()
    assert soundfile.info(song).frames == seconds * 48_000
    with Path("trace.jsonl").open(encoding="utf-8") as lines:
        (run,) = measured_runs(list(FinishedSpan.from_otlp_json(lines)))
    assert run.root.attributes[semconv.TASK] == task
    (encode,) = run.named(semconv.VAE_ENCODE)
    assert encode.attributes[semconv.LATENT_FRAMES] == seconds * 25
    assert run.root.attributes[semconv.REQUEST_MODEL] == model


def test_a_song_in_the_place_of_its_source_is_refused_before_models_are_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkpoints, "load_renderer_models", None)
    song = Path("output/song-1-seed42.wav")
    song.parent.mkdir()
    song.write_bytes(Path("source.wav").read_bytes())
    assert main([*QUICK, "--task-type", "cover", "--src-audio", str(song)]) == 2
    shown = capsys.readouterr()
    assert shown.err == f"error: the song would replace {song}: choose another output directory\n"
    assert shown.out == ""


def test_a_reference_reaches_the_engine() -> None:
    """R127: its half a minute is encoded."""
    arguments = ["--duration", "10", "--reference-audio", "source.wav", "--trace-output", "trace.jsonl"]
    assert main([*QUICK, *arguments]) == 0
    with Path("trace.jsonl").open(encoding="utf-8") as lines:
        (run,) = measured_runs(list(FinishedSpan.from_otlp_json(lines)))
    (encode,) = run.named(semconv.VAE_ENCODE)
    assert encode.attributes[semconv.LATENT_FRAMES] == 750
    assert encode.attributes[semconv.VAE_TILES] == 2


def test_options_reach_the_request(source: Path) -> None:
    """R127, R128: the example's duration gives way to the source's."""
    example = Example(caption="rain", duration=120)
    options = Options(
        task_type="repaint", src_audio=source, reference_audio=source, repainting_start=1.5, repainting_end=4.0
    )
    request = build_request(example, options)
    assert (request.task_type, request.src_audio, request.reference_audio) == ("repaint", source, source)
    assert (request.repainting_start, request.repainting_end, request.duration) == (1.5, 4.0, None)
    request = build_request(example, Options(task_type="cover", src_audio=source, audio_cover_strength=0.3))
    assert request.audio_cover_strength == 0.3
    request = build_request(example, Options(task_type="complete", src_audio=source, track=("drums", "bass")))
    assert request.track_names == ("drums", "bass")
    plain = build_request(example, Options())
    assert (plain.src_audio, plain.reference_audio, plain.duration) == (None, None, 120)


def test_no_language_model_is_loaded_for_a_cover(source: Path) -> None:
    options = Options(task_type="cover", src_audio=source, thinking=True)
    assert not build_request(Example(), options).needs_language_model


def test_tiny_means_the_tiny_model_that_has_learnt_the_task() -> None:
    chosen = {
        task: select_models(Options(tiny=True, task_type=task), with_language_model=False).dit
        for task in ("text2music", "cover", "extract")
    }
    assert chosen == {
        "text2music": "acestep-v15-tiny", "cover": "acestep-v15-tiny", "extract": "acestep-v15-tiny-base",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task-type", "cover"], "task cover works on a recording: give --src-audio"),
        (["--src-audio", "source.wav"], "text2music takes no --src-audio"),
        (["--task-type", "cover", "--src-audio", "missing.wav"], "no audio file missing.wav"),
        (["--reference-audio", "missing.wav"], "no audio file missing.wav"),
        (["--task-type", "cover", "--src-audio", "text.wav"], "text.wav cannot be read as audio"),
        (["--task-type", "cover", "--src-audio", "source.wav", "--duration", "30"], "leave out --duration"),
        (["--task-type", "cover", "--src-audio", "source.wav", "--track", "drums"], "--track (drums) is for complete"),
        (["--task-type", "extract", "--src-audio", "source.wav", "--track", "kazoo"], "no track 'kazoo'"),
        (["--mode", "benchmark", "--task-type", "cover"], "--task-type belongs to --mode profile"),
        (["--mode", "benchmark", "--track", "drums"], "--track belongs to --mode profile"),
        (
            ["--repainting-end", "3"],
            "--repainting-start and --repainting-end are for lego, repaint, not",
        ),
        (["--reference-audio", "silence.wav"], "--reference-audio silence.wav is silent"),
        (
            ["--task-type", "repaint", "--src-audio", "source.wav", "--repainting-start", "4", "--repainting-end", "3"],
            "window 4 ... 3 s is empty",
        ),
    ],
)
def test_bad_input_is_one_clear_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.wav").write_text("not a recording")
    soundfile.write("silence.wav", np.zeros(8_000), 8_000)
    assert main([*QUICK, *arguments]) == 2
    captured = capsys.readouterr().err
    assert captured.startswith("error: ")
    assert captured.count("\n") == 1
    assert message in captured


def test_a_turbo_model_is_refused_for_single_tracks(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config-path", "acestep-v15-tiny", "--task-type", "lego", "--src-audio", "source.wav"]
    assert main([*QUICK[1:], *arguments]) == 2
    assert "--task-type lego needs a base model such as acestep-v15-base" in capsys.readouterr().err
