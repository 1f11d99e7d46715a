"""--detailed and --torch-profile: further runs that do not affect the measured one (R22, R30, R145, R163)."""

from __future__ import annotations

import json
import pstats
from pathlib import Path

import pytest

from acestep_otel import semconv
from acestep_otel.profiler.cli import main
from acestep_otel.profiler.report.spans import FinishedSpan, runs

SHORT = (
    "--tiny", "--device", "cpu", "--duration", "10", "--inference-steps", "3", "--no-warmup", "--audio-format", "wav",
)  # fmt: skip


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_detailed_lists_functions_and_keeps_a_profile(capsys: pytest.CaptureFixture[str]) -> None:
    """R22, R30, R145."""
    assert main([*SHORT, "--thinking", "--detailed", "--llm-debug"]) == 0
    shown = capsys.readouterr().out
    assert "TOP 20 FUNCTIONS BY CUMULATIVE TIME" in shown
    assert "it adds time to every call" in shown
    listed = shown.partition("ncalls")[2].splitlines()[1:21]
    assert any("(generate_music)" in line for line in listed)
    times = [float(line.split()[3]) for line in listed]
    assert times == sorted(times, reverse=True)
    functions = {name for _, _, name in pstats.Stats("output/profile.prof").stats}
    assert {"generate_music", "denoise_step", "compose_codes"} <= functions
    assert "denoise_step" in Path("output/profile.functions.txt").read_text("utf-8")
    # A second look at the same song, not a second song.
    assert [path.name for path in Path("output").glob("*.wav")] == ["song-1-seed42.wav"]


def test_the_profilers_run_after_the_measured_run_and_are_not_traced() -> None:
    files = ("--trace-output", "trace.jsonl", "--benchmark-output", "out/result.json")
    assert main([*SHORT, "--detailed", "--torch-profile", *files]) == 0
    with Path("trace.jsonl").open(encoding="utf-8") as lines:
        assert len(runs(list(FinishedSpan.from_otlp_json(lines)))) == 1
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "result.functions.txt", "result.json", "result.prof", "result.torch-trace.json",
    ]  # fmt: skip


def test_the_ranges_of_the_torch_trace_are_named_like_the_spans() -> None:
    files = ("--trace-output", "trace.jsonl", "--thinking", "--use-cot-metas")
    assert main([*SHORT, *files, "--torch-profile"]) == 0
    with Path("trace.jsonl").open(encoding="utf-8") as lines:
        (run,) = runs(list(FinishedSpan.from_otlp_json(lines)))
    events = json.loads(Path("output/profile.torch-trace.json").read_text("utf-8"))["traceEvents"]
    ranges = sorted(event["name"] for event in events if event.get("cat") == "user_annotation")
    assert ranges == sorted(span.name for span in (run.root, *run.spans))
    assert ranges.count(semconv.DIT_STEP) == 3
    assert any(event["name"].startswith("aten::") for event in events)


def test_a_mode_of_the_language_model_can_be_examined_too(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--tiny", "--device", "cpu", "--no-warmup", "--mode", "understand", "--lyrics-token-limit", "8")
    assert main([*arguments, "--detailed"]) == 0
    assert "(understand_music)" in capsys.readouterr().out
    assert Path("output/understand.prof").exists()


@pytest.mark.parametrize("flag", ["--detailed", "--torch-profile"])
def test_where_the_files_go_is_checked_before_the_run(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    assert main([*SHORT, flag, "--output-dir", "songs", "--benchmark-output", "file/result.json"]) == 2
    assert "cannot write file/result.json" in capsys.readouterr().err


def test_without_the_flags_nothing_is_examined(capsys: pytest.CaptureFixture[str]) -> None:
    """R163."""
    assert main(SHORT) == 0
    assert "FUNCTIONS" not in capsys.readouterr().out
    assert [path.suffix for path in Path("output").iterdir()] == [".wav"]
