"""Subcommand compare: exit codes, table and file."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from acestep_otel.profiler.cli import main

PROFILE = ("--tiny", "--device", "cpu", "--duration", "10", "--inference-steps", "1", "--no-warmup")


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(model: str) -> dict[str, Any]:
    placement = {
        "offload_to_cpu": False, "offload_dit_to_cpu": False, "quantization": None, "compile": False,
        "automatic_offload": False,
    }  # fmt: skip
    effective = {
        "device": "cpu", "dtype": "float32", "dit_model": model, "lm_model": None, "lm_backend": None, "seeds": [7],
        "weights": "synthetic", "placement": placement,
    }  # fmt: skip
    return {
        "status": "ok", "error": None, "effective_settings": effective, "songs": [], "blueprint": None,
        "measurement": None,
    }  # fmt: skip


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
    spread: dict[str, float] | None = None,
) -> str:
    figures: dict[str, Any] = {"wall_time": wall, "lm_time": 0.0, "dit_time": 0.5, "vae_time": vae}
    row = {
        "config": {"duration": 30.0, "batch_size": 1, "thinking": False, "inference_steps": 8},
        "status": "error" if failed else "ok",
        "error": {"type": "OutOfMemory", "message": "no room", "stage": "dit"} if failed else None,
        **(dict.fromkeys(figures) if failed else figures),
        "minimum": None if failed else figures,
        "spread": None if failed else spread or dict.fromkeys(figures, 0.0),
        "runs": [run(model)] * (1 if spread is None else 2),
    }
    environment = {
        "cpu": "a CPU", "cpu_cores": 2, "memory_bytes": None, "accelerators": [], "operating_system": "Linux",
        "python": "3.11", "packages": {"torch": "2.13"}, "git_revision": None,
    }  # fmt: skip
    content = {
        "schema_version": 1,
        "created": "2026-01-01T00:00:00+00:00",
        "mode": mode,
        "environment": environment,
        "arguments": {"example": example},
        "benchmark": {"tier": "unlimited", "gpu_memory": 0, "cells": planned, "clamped": []}
        if mode == "benchmark"
        else None,
        "tier_test": None,
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


def with_adapters(name: str, *adapters: dict[str, Any]) -> str:
    content = json.loads(Path(write(name)).read_text("utf-8"))
    content["results"][0]["runs"][0]["effective_settings"]["adapters"] = list(adapters)
    Path(name).write_text(json.dumps(content), encoding="utf-8")
    return name


def test_other_adapters_are_a_difference(capsys: pytest.CaptureFixture[str]) -> None:
    piano, strings = {"name": "piano", "scale": 0.5}, {"name": "strings", "scale": 1.0}
    files = [with_adapters("none.json"), with_adapters("one.json", piano), with_adapters("two.json", piano, strings)]
    for a, b in itertools.combinations_with_replacement(files, 2):
        main(["compare", a, b])
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("differs: ")] == [
        "differs: adapters: none in A, piano x 0.5 in B",
        "differs: adapters: none in A, piano x 0.5 and strings x 1 in B",
        "differs: adapters: piano x 0.5 in A, piano x 0.5 and strings x 1 in B",
    ]


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
        ("none.json", "there is no file none.json"),
        ("empty.json", "empty.json has no cells to compare"),
        ("profile.json", "profile.json has no cells to compare"),
        ("text.json", "text.json, line 1, column 1: Expecting value: give a result file that --benchmark-output wrote"),
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


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e400", "9" * 50])
@pytest.mark.parametrize("flag", ["--threshold", "--noise-floor"])
def test_a_number_that_switches_the_gate_off_is_refused(
    flag: str, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """N7."""
    assert main(["compare", write("a.json"), write("b.json", wall=5), flag, number]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("spread", [0.05, 0.5])
def test_what_repeated_runs_lie_apart_is_noise(spread: float) -> None:
    """N18: the spread that --repeat measured, of either file."""
    apart = {"wall_time": spread, "lm_time": 0.0, "dit_time": 0.0, "vae_time": 0.0}
    for first, second in ((apart, None), (None, apart)):
        files = write("a.json", spread=first), write("b.json", wall=1.2, spread=second)
        assert main(["compare", *files]) == (1 if spread < 0.2 else 0)


def test_a_ratio_that_does_not_pass_is_shown_above_the_threshold(capsys: pytest.CaptureFixture[str]) -> None:
    """N18: not "x 1.10" for a threshold of 1.10."""
    assert main(["compare", write("a.json"), write("b.json", wall=1.1004), "--noise-floor", "0"]) == 1
    assert "wall_time x 1.1004" in capsys.readouterr().out


def test_a_stage_that_took_no_time_and_now_takes_some_does_not_pass(capsys: pytest.CaptureFixture[str]) -> None:
    """N13."""
    assert main(["compare", write("a.json", vae=0), write("b.json", vae=5)]) == 1
    assert "vae_time from 0 to 5.000 s" in capsys.readouterr().out


def test_a_profile_that_failed_does_not_pass(capsys: pytest.CaptureFixture[str]) -> None:
    """N18."""
    assert main([*PROFILE, "--benchmark-output", "a.json"]) == 0
    document = json.loads(Path("a.json").read_text("utf-8"))
    failure = {"type": "OutOfMemory", "message": "no room", "stage": "dit"}
    document["results"][0] |= {"status": "error", "error": failure, "effective_settings": None, "measurement": None}
    Path("b.json").write_text(json.dumps(document), "utf-8")
    assert main(["compare", "a.json", "b.json"]) == 1
    assert "failed" in capsys.readouterr().out
    assert main(["compare", "b.json", "a.json"]) == 2


@pytest.mark.parametrize(
    "damage",
    [
        {"results": []}, {"results": "none"}, {"results": [None]}, {"runs": []}, {"wall_time": "1"}, {"wall_time": [1]},
        {"wall_time": None}, {"wall_time": 0}, {"wall_time": -1}, {"vae_time": -1}, {"wall_time": 10**400},
        {"wall_time": float("nan")}, {"wall_time": float("inf")}, {"config": "30 s"}, {"config": {}},
        {"spread": "much"}, {"status": "fine"}, {"environment": None}, {"arguments": []}, {"benchmark": None},
        {"benchmark": {"cells": "many"}}, {"mode": ["benchmark"]}, {"mode": "tier-test"}, {"schema_version": "1"},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("side", ["baseline", "candidate"])
def test_a_damaged_file_is_one_line(damage: dict[str, Any], side: str, capsys: pytest.CaptureFixture[str]) -> None:
    """N13: no traceback, and no pass."""
    document = json.loads(Path(write("a.json")).read_text("utf-8"))
    within = document if damage.keys() <= document.keys() else document["results"][0]
    within.update(damage)
    Path("damaged.json").write_text(json.dumps(document)[:10_000], "utf-8")
    files = [write("b.json"), "damaged.json"]
    assert main(["compare", *(files if side == "candidate" else reversed(files))]) == 2
    said = capsys.readouterr().err
    assert "damaged.json" in said
    assert said.count("\n") == 1
    assert len(said) < 500


def test_an_output_at_the_place_of_an_input_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """N1."""
    before = Path(write("a.json")).read_text("utf-8")
    assert main(["compare", "a.json", write("b.json"), "--output", "./a.json"]) == 2
    assert "--output would overwrite A.json" in capsys.readouterr().err
    assert Path("a.json").read_text("utf-8") == before


def test_the_page_is_written_also_when_the_ratios_do_not_pass(capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write("a.json"), write("b.json", wall=3.0)
    assert main(["compare", a, b, "--report", "pages/ratios.html", "--output", "ratios.json"]) == 1
    page = Path("pages/ratios.html").read_text("utf-8")
    assert "× 3.00" in page
    assert "acestep-otel compare a.json b.json --threshold 1.1 --noise-floor 5 --report pages/ratios.html" in page
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] != "Report:  pages/ratios.html"
    assert "Ratios:  ratios.json\nReport:  pages/ratios.html\n" in captured.out
    assert captured.err == "error: 1 of the figures did not pass the threshold of 1.1\n"


@pytest.mark.parametrize("taken", ["a.json", "b.json", "ratios.json"])
def test_a_page_that_would_take_the_place_of_another_file_is_refused(
    taken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = write("a.json"), write("b.json")
    assert main(["compare", a, b, "--output", "ratios.json", "--report", taken]) == 2
    assert "error: --report would overwrite " in capsys.readouterr().err
    assert json.loads(Path("a.json").read_text("utf-8"))["mode"] == "benchmark"


def test_the_energy_of_both_is_shown_and_not_judged(capsys: pytest.CaptureFixture[str]) -> None:
    for name, joules in (("a.json", 1000.0), ("b.json", 3000.0)):
        write(name)
        document = json.loads(Path(name).read_text("utf-8"))
        (row,) = document["results"]
        energy = {
            "joules": joules, "watts": 300.0, "watt_hours_per_minute": 0.1, "resolution": 0.1, "shared": False,
            "stages": {},
        }  # fmt: skip
        stage = {"total": 0.0}
        row["runs"][0]["measurement"] = {
            "trace_id": "", "wall": 1.0, "token_statistics": [], "vram_peaks": [], "energy": energy,
            "stages": {
                "vae_encode": stage, "audio_tokenization": stage, "audio_save": stage, "other": stage,
                "llm_planning": {"total": 0, "token_generation": 0, "constrained_decoding": 0, "cfg_overhead": 0},
                "dit_diffusion": {"total": 0, "per_step_average": None, "steps": 0, "step_times": []},
                "vae_decode": {"total": 0, "tile_times": []},
            },
        }  # fmt: skip
        Path(name).write_text(json.dumps(document), "utf-8")
    assert main(["compare", "a.json", "b.json", "--output", "c.json"]) == 0
    assert "1,000 J to 3,000 J, x 3.00" in capsys.readouterr().out
    assert json.loads(Path("c.json").read_text("utf-8"))["cells"][0]["energy"] == [1000.0, 3000.0]
