"""Mode profile, run for real on the tiny models: song, table, trace and result agree; failures keep what they have."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from acestep.renderer.decoder import VaeDecoder
from acestep.renderer.renderer import Renderer
from acestep_otel import semconv
from acestep_otel.profiler.cli import main
from acestep_otel.profiler.report.breakdown import Breakdown
from acestep_otel.profiler.report.spans import Run, measured_runs, runs
from acestep_otel.profiler.report.statistics import step_times
from acestep_otel.profiler.report.terminal import render_breakdown
from tests.profiler.outputs import OUTPUTS, result, traced
from tests.receivers import grpc_receiver, refusing_endpoint

SHORT = ("--tiny", "--device", "cpu", "--duration", "10", "--inference-steps", "3", "--audio-format", "wav")


def profile(*arguments: str) -> int:
    return main([*SHORT, "--output-dir", "songs", *OUTPUTS, *arguments])


def measured() -> Run:
    (run,) = measured_runs(traced())
    return run


def test_one_run_leaves_a_song_a_table_a_trace_and_a_result(capsys: pytest.CaptureFixture[str]) -> None:
    assert profile("--thinking", "--use-cot-metas", "--batch-size", "2", "--seed", "5") == 0
    shown = capsys.readouterr()
    assert shown.err == ""

    songs = sorted(Path("songs").iterdir())
    assert [song.name for song in songs] == ["song-1-seed5.wav", "song-2-seed6.wav"]
    for song in songs:
        found = soundfile.info(song)
        assert (found.samplerate, found.channels, found.duration) == (48_000, 2, 10.0)

    breakdown = Breakdown.of(measured())
    assert render_breakdown(breakdown) in shown.out
    assert breakdown.steps == 3
    assert breakdown.planner > 0
    assert breakdown.guidance is not None
    assert breakdown.other > 0

    entry = result()
    assert entry["status"] == "ok"
    assert entry["songs"] == [song.name for song in songs]
    measurement = entry["measurement"]
    assert measurement["wall"] == breakdown.wall
    assert measurement["stages"]["dit_diffusion"]["step_times"] == step_times(measured())
    codes = measurement["token_statistics"][-1]
    # Five codes a second, two songs of ten seconds.
    assert (codes["phase"], codes["output_tokens"]) == ("lm.codes", 100)


def test_the_warm_up_has_the_shape_of_the_measured_run() -> None:
    """R158."""
    assert profile() == 0
    warm_up, run = runs(traced())
    assert warm_up.root.attributes[semconv.WARMUP] is True
    assert [span.name for span in warm_up.spans] == [span.name for span in run.spans]
    for name in (semconv.BATCH_SIZE, semconv.AUDIO_DURATION):
        assert warm_up.root.attributes[name] == run.root.attributes[name]


def test_no_warmup_skips_it_and_leaves_guidance_uncalibrated(capsys: pytest.CaptureFixture[str]) -> None:
    """R116."""
    assert profile("--no-warmup", "--thinking") == 0
    assert len(runs(traced())) == 1
    assert "    └─ CFG overhead                  —               —" in capsys.readouterr().out
    assert result()["measurement"]["stages"]["llm_planning"]["cfg_overhead"] is None


def test_without_language_model_its_rows_are_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert profile("--no-warmup") == 0
    assert "  LLM Planning (total)               0.00            0.0%" in capsys.readouterr().out
    assert result()["effective_settings"]["lm_model"] is None


@pytest.mark.parametrize("switch", [{"ACESTEP_OTEL_DETAIL": "off"}, {"OTEL_SDK_DISABLED": "true"}])
def test_switched_off_tracing_still_makes_a_song(
    switch: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in switch.items():
        monkeypatch.setenv(name, value)
    assert profile("--no-warmup") == 0
    assert "Tracing was off, so there is no breakdown." in capsys.readouterr().out
    assert result()["measurement"] is None
    assert len(list(Path("songs").iterdir())) == 1


def test_a_prompt_that_is_cut_is_one_warning_for_warm_up_and_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """N18."""
    song = tmp_path / "song.json"
    song.write_text(json.dumps({"caption": "a bright song of rain " * 200, "duration": 10}), "utf-8")
    assert profile("--example", str(song)) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"warning: prompt of (more than )?\d+ tokens cut to the \d+ that the model reads", line)


def test_the_detail_level_bounds_the_tree() -> None:
    assert profile("--no-warmup", "--detail", "stage") == 0
    names = {span.name for span in measured().spans}
    assert semconv.DIT in names
    assert semconv.DIT_STEP not in names


def test_a_run_is_exported_whole() -> None:
    with grpc_receiver() as received:
        assert profile("--no-warmup", "--otlp-endpoint", received.endpoint) == 0
        assert received.span_names() == sorted(span.name for span in traced())
        assert semconv.STAGE_DURATION.name in received.metric_names()


def test_a_dead_collector_changes_nothing_but_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert profile("--no-warmup") == 0
    alone = soundfile.read("songs/song-1-seed42.wav")[0]
    with refusing_endpoint() as endpoint:
        assert profile("--no-warmup", "--otlp-endpoint", endpoint) == 0
    assert (soundfile.read("songs/song-1-seed42.wav")[0] == alone).all()
    errors = capsys.readouterr().err
    assert errors.startswith("warning: ")
    assert errors.count("\n") == 1


def failing(error: Callable[[], BaseException]) -> Callable[..., Any]:
    def fail(*_arguments: object, **_options: object) -> Any:
        raise error()

    return fail


def test_out_of_memory_keeps_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(VaeDecoder, "decode_tile", failing(lambda: torch.OutOfMemoryError("no room for 3 GiB")))
    assert profile("--no-warmup") == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("error: out of memory in stage 'vae.decode'")
    assert shown.err.count("\n") == 1
    assert "    └─ Steps                         3               —" in shown.out
    entry = result()
    assert (entry["status"], entry["error"]["type"]) == ("error", "OutOfMemory")
    assert entry["error"]["stage"] == "vae.decode"
    assert entry["measurement"]["stages"]["dit_diffusion"]["steps"] == 3
    assert measured().root.error == "OutOfMemory"


def test_a_warm_up_that_fails_is_a_failed_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Renderer, "denoise_step", failing(lambda: torch.OutOfMemoryError("no room")))
    assert profile() == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("error: out of memory in stage 'dit'")
    assert "BREAKDOWN" not in shown.out
    entry = result()
    assert (entry["status"], entry["measurement"]) == ("error", None)
    assert [run.root.attributes[semconv.WARMUP] for run in runs(traced())] == [True]


def test_a_defect_shows_its_traceback_and_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VaeDecoder, "decode_tile", failing(lambda: ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):
        profile("--no-warmup")
    assert result()["error"] == {"type": "ZeroDivisionError", "message": "a bug", "stage": None}
    assert measured().root.status == "error"


def test_a_disk_that_fills_up_fails_the_run_after_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("acestep_otel.profiler.files.os.fsync", full)
    assert profile("--no-warmup") == 1
    shown = capsys.readouterr()
    assert "TIME COSTS BREAKDOWN" in shown.out
    assert shown.err.endswith(": No space left on device\n")
    assert len(list(Path("songs").iterdir())) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_with_its_spans_written(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = VaeDecoder.decode_tile

    def interrupted(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), number)
        return decode(*arguments, **options)

    monkeypatch.setattr(VaeDecoder, "decode_tile", interrupted)
    handler = signal.getsignal(number)
    try:
        ended = profile("--no-warmup")
    except SystemExit as error:
        ended = error.code
    assert ended == code
    assert signal.getsignal(number) is handler
    run = measured()
    assert run.root.error in ("SystemExit", "KeyboardInterrupt")
    assert len(run.named(semconv.DIT_STEP)) == 3
    assert result()["status"] == "error"
