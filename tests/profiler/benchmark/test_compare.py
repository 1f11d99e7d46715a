"""Subcommand compare: exit codes, table and file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from acestep_otel.profiler.cli import main

PROFILE = ("--tiny", "--device", "cpu", "--duration", "10", "--inference-steps", "1", "--no-warmup")


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(
    name: str,
    *,
    wall: float = 1.0,
    vae: float = 0.1,
    mode: str = "benchmark",
    failed: bool = False,
    model: str = "acestep-v15-turbo",
    example: str = "example_05.json",
    planned: int = 1,
) -> str:
    figures: dict[str, Any] = {"wall_time": wall, "lm_time": 0.0, "dit_time": 0.5, "vae_time": vae}
    row = {
        "config": {"duration": 30.0, "batch_size": 1, "thinking": False, "inference_steps": 8},
        "status": "error" if failed else "ok",
        **(dict.fromkeys(figures) if failed else figures),
        "runs": [{"effective_settings": {"dit_model": model, "placement": {"quantization": None}}}],
    }
    environment = {"cpu": "a CPU", "accelerators": [], "packages": {"torch": "2.13"}, "git_revision": None}
    content = {
        "schema_version": 1,
        "mode": mode,
        "environment": environment,
        "arguments": {"example": example},
        "benchmark": {"cells": planned} if mode == "benchmark" else None,
        "results": [row],
    }
    Path(name).write_text(json.dumps(content), encoding="utf-8")
    return name


@pytest.mark.parametrize(
    ("wall", "threshold", "code"), [(1.1, "1.1", 0), (1.11, "1.1", 1), (0.5, "1.1", 0), (2.0, "2.5", 0), (1.2, "1", 1)]
)
def test_the_exit_code_is_the_gate(wall: float, threshold: float, code: int) -> None:
    assert main(["compare", write("a.json"), write("b.json", wall=wall), "--threshold", str(threshold)]) == code


def test_the_default_threshold_is_a_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", write("a.json"), write("b.json", wall=1.2)]) == 1
    shown = capsys.readouterr()
    assert "30 s x 1, not thinking, 8 steps: wall_time x 1.20" in shown.out
    assert shown.err == "error: 1 of the figures did not pass the threshold of 1.1\n"


@pytest.mark.parametrize(
    ("flags", "after", "code"),
    [
        ((), 0.003, 0), ((), 0.0071, 1), (("--noise-floor", "0"), 0.003, 1), (("--noise-floor", "0.5"), 0.003, 1),
        (("--noise-floor", "20"), 0.02, 0), (("--noise-floor", "20"), 0.0221, 1),
    ],
)  # fmt: skip
def test_a_stage_of_two_milliseconds_may_take_three(
    flags: tuple[str, ...], after: float, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The floor is five milliseconds unless --noise-floor says otherwise."""
    assert main(["compare", write("a.json", vae=0.002), write("b.json", vae=after), *flags]) == code
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("30         1")]
    # The ratio is shown either way.
    assert row.split()[-2:] == [f"{after / 0.002:.2f}", "SLOWER" if code else "OK"]


def test_the_floor_is_written_in_seconds() -> None:
    assert main(["compare", write("a.json"), write("b.json"), "--noise-floor", "2", "--output", "ratios.json"]) == 0
    assert json.loads(Path("ratios.json").read_text("utf-8"))["noise_floor"] == 0.002


def test_a_cell_that_fails_now_does_not_pass() -> None:
    assert main(["compare", write("a.json"), write("b.json", failed=True)]) == 1
    assert main(["compare", write("a.json", failed=True), write("b.json")]) == 0


def test_a_benchmark_that_was_stopped_does_not_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", write("a.json"), write("b.json", planned=48)]) == 1
    assert "b.json: stopped after 1 of 48 cells" in capsys.readouterr().out
    assert main(["compare", write("a.json", planned=48), write("b.json")]) == 0


def test_the_ratios_are_written_also_when_they_do_not_pass() -> None:
    assert main(["compare", write("a.json"), write("b.json", wall=2), "--output", "out/ratios.json"]) == 1
    written = json.loads(Path("out/ratios.json").read_text("utf-8"))
    assert written["cells"][0]["ratios"] == {"wall_time": 2.0, "lm_time": None, "dit_time": 1.0, "vae_time": 1.0}


def test_files_of_different_models_or_settings_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    """The ratio stands all the same: that may be what was asked."""
    other = write("b.json", model="acestep-v15-xl-turbo", example="example_01.json")
    assert main(["compare", write("a.json"), other, "--output", "ratios.json"]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("differs: ")] == [
        "differs: example: example_05.json in A, example_01.json in B",
        "differs: dit_model: acestep-v15-turbo in A, acestep-v15-xl-turbo in B",
    ]
    assert json.loads(Path("ratios.json").read_text("utf-8"))["differences"] == {
        "example": [["example_05.json", "example_01.json"]],
        "dit_model": [["acestep-v15-turbo", "acestep-v15-xl-turbo"]],
    }


@pytest.mark.parametrize("other", [{}, {"failed": True}])
def test_files_of_the_same_settings_do_not(other: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", write("a.json"), write("b.json", **other)])
    assert "differs" not in capsys.readouterr().out


def test_two_profiles_can_be_compared(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.json", "b.json"):
        assert main([*PROFILE, "--benchmark-output", name]) == 0
    capsys.readouterr()
    assert main(["compare", "a.json", "b.json", "--threshold", "1000"]) == 0
    row = capsys.readouterr().out.splitlines()[5].split()
    assert row[:4] == ["10", "1", "False", "1"]
    assert float(row[4]) > 0
    assert row[5] == "—"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("none.json", "cannot read none.json"),
        ("empty.json", "a.json is of mode benchmark and empty.json of mode profile"),
        ("profile.json", "profile.json has no cells to compare"),
        ("text.json", "text.json is not JSON: give a result file that --benchmark-output wrote"),
    ],
)
def test_files_that_cannot_be_compared_are_refused(
    other: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write("a.json")
    write("profile.json", mode="profile")
    empty = json.loads(Path("profile.json").read_text("utf-8")) | {"results": []}
    Path("empty.json").write_text(json.dumps(empty), encoding="utf-8")
    Path("text.json").write_text("no JSON", encoding="utf-8")
    assert main(["compare", "a.json", other]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"error: {message}")
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "a.json"], "Missing argument 'B.json'"),
        (["compare", "a.json", "b.json", "--threshold", "0"], "--threshold"),
        (["compare", "a.json", "b.json", "--noise-floor", "-1"], "--noise-floor"),
        (["--tiny", "compare", "a.json", "b.json"], "compare does not take --tiny"),
        (["--tiny", "a.json"], "No such command 'a.json'"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1


def test_its_help_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "A.json B.json" in shown
    assert "--mode" not in shown
