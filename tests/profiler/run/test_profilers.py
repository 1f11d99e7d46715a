"""--detailed and --torch-profile: further runs that do not affect the measured one (R22, R30, R145, R163)."""

from __future__ import annotations

import json
import os
import pstats
import subprocess
import sys
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


@pytest.mark.parametrize("flag", ["--detailed", "--torch-profile"])
def test_a_link_is_followed_and_what_it_leads_to_keeps_its_mode(flag: str) -> None:
    """N1: PyTorch would put a file in the place of the link, and of a device."""
    suffix = {"--detailed": "prof", "--torch-profile": "torch-trace.json"}[flag]
    Path("output").mkdir()
    target = Path("kept")
    target.touch()
    target.chmod(0o640)
    link = Path(f"output/profile.{suffix}")
    link.symlink_to(target.absolute())
    assert main([*SHORT, flag]) == 0
    assert link.is_symlink()
    assert target.stat().st_size > 1_000
    assert target.stat().st_mode & 0o777 == 0o640
    assert not [path for path in Path("output").iterdir() if path.name.startswith(".")]


FULL = """
import resource, sys
from acestep_otel.profiler.cli import main
from acestep_otel.profiler.run import measurement
profilers = measurement.run_profilers
def on_a_full_disk(options, call):
    def called():
        call()
        # Python ignores SIGXFSZ: a write beyond the limit fails like one to a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    profilers(options, called)
measurement.run_profilers = on_a_full_disk
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("flag", "said"), [("--torch-profile", "profile.torch-trace.json: PyTorch wrote no trace"),
                       ("--detailed", "profile.prof: File too large")],
)  # fmt: skip
def test_a_trace_that_could_not_be_written_is_not_announced(flag: str, said: str) -> None:
    """N23: PyTorch returns from its export whether or not there is a file."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, *SHORT, flag],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"error: cannot write output/{said}" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Chrome trace" not in done.stdout
    assert "Wall Time (total)" in done.stdout
    assert not [path for path in Path("output").iterdir() if path.suffix in (".json", ".prof") or path.name[0] == "."]


def test_without_the_flags_nothing_is_examined(capsys: pytest.CaptureFixture[str]) -> None:
    """R163."""
    assert main(SHORT) == 0
    assert "FUNCTIONS" not in capsys.readouterr().out
    assert [path.suffix for path in Path("output").iterdir()] == [".wav"]
