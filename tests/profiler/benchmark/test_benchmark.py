"""Mode benchmark, run for real on the tiny models: table, result file, trace and metrics agree; cells fail alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch

from acestep import checkpoints
from acestep.errors import OutOfMemory
from acestep.planner.planner import Planner
from acestep.renderer import renderer
from acestep.renderer.decoder import VaeDecoder
from acestep.renderer.renderer import Renderer
from acestep_otel import semconv
from acestep_otel.profiler.benchmark.comparison import ResultFile
from acestep_otel.profiler.benchmark.matrix import Cell, Figures
from acestep_otel.profiler.cli import main
from acestep_otel.profiler.report.breakdown import Breakdown
from acestep_otel.profiler.report.spans import FinishedSpan, Run, runs
from tests.profiler.report.schema import violations
from tests.receivers import grpc_receiver

SCHEMA = json.loads((files("acestep_otel.profiler.report") / "result.schema.json").read_text("utf-8"))
SHORT = ("--tiny", "--device", "cpu", "--mode", "benchmark", "--duration", "10", "--audio-format", "wav")


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SDK_DISABLED", "ACESTEP_OTEL_DETAIL", "MAX_CUDA_VRAM"):
        monkeypatch.delenv(name, raising=False)


def benchmark(*arguments: str) -> int:
    return main([*SHORT, "--benchmark-output", "result.json", "--trace-output", "trace.jsonl", *arguments])


def document() -> dict[str, Any]:
    found = json.loads(Path("result.json").read_text("utf-8"))
    assert violations(found, SCHEMA) == []
    return found


def traced() -> list[Run]:
    with Path("trace.jsonl").open(encoding="utf-8") as lines:
        return runs(list(FinishedSpan.from_otlp_json(lines)))


def table(shown: str) -> list[list[str]]:
    lines = shown.splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("Duration   Batch"))
    return [line.split() for line in lines[first + 2 : lines.index("", first)]]


def test_the_matrix_is_clamped_run_and_written(capsys: pytest.CaptureFixture[str]) -> None:
    """R5, R20, R39, R40, R41, R44, R45, R144, R159: without a GPU the limits of the smallest tier."""
    assert benchmark("--no-warmup") == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.startswith(
        "4 cells, limits of tier1 (no GPU)\n"
        "clamped, not thinking: batch size 2, 4 -> 1\n"
        "clamped, thinking: batch size 2, 4 -> 1\n"
    )
    assert "acestep-v15-tiny, acestep-5Hz-lm-tiny (pt) on cpu, float32, weights: synthetic\n" in shown.out
    rows = table(shown.out)
    assert [row[:4] for row in rows] == [
        ["10", "1", "False", "8"], ["10", "1", "False", "16"], ["10", "1", "True", "8"], ["10", "1", "True", "16"],
    ]  # fmt: skip
    assert {row[-1] for row in rows} == {"OK"}

    found = document()
    assert (found["mode"], found["benchmark"]["tier"], found["benchmark"]["cells"]) == ("benchmark", "tier1", 4)
    assert [clamp["requested"] for clamp in found["benchmark"]["clamped"]] == [2, 4, 2, 4]
    columns = ("wall_time", "lm_time", "dit_time", "vae_time")
    assert [[f"{row[column]:.2f}" for column in columns] for row in found["results"]] == [row[4:8] for row in rows]
    # As the guide's tip inspects it.
    subprocess.run([sys.executable, "-m", "json.tool", "result.json"], check=True, capture_output=True)


def test_figures_come_from_the_trace_and_cells_are_found_in_it() -> None:
    assert benchmark("--no-warmup", "--inference-steps", "2") == 0
    found, all_runs = document()["results"], traced()
    assert [run.root.attributes[semconv.BENCHMARK_CELL] for run in all_runs] == [0, 1]
    assert len({run.root.trace_id for run in all_runs}) == 2
    for row, run in zip(found, all_runs, strict=True):
        assert row["runs"][0]["measurement"]["trace_id"] == run.root.trace_id
        figures = Figures.of(Breakdown.of(run))
        assert [row["wall_time"], row["lm_time"], row["dit_time"], row["vae_time"]] == list(figures)
        assert run.root.attributes[semconv.BENCHMARK_REPEAT] == 0


def test_a_thinking_cell_runs_both_phases_and_the_other_none() -> None:
    assert benchmark("--no-warmup", "--inference-steps", "1") == 0
    plain, thinking = traced()
    assert plain.named(semconv.LM) == []
    assert len(thinking.named(semconv.LM_COT)) == 1
    # Five codes a second.
    assert thinking.named(semconv.LM_CODES)[0].attributes[semconv.USAGE_OUTPUT_TOKENS] == 50
    row_plain, row_thinking = document()["results"]
    assert row_plain["lm_time"] == 0
    assert row_thinking["lm_time"] > 0


def test_every_cell_is_warmed_at_its_own_shape_and_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    """R158."""
    arguments = ("--inference-steps", "1", "--batch-size", "2", "--repeat", "3")
    assert benchmark(*arguments) == 0
    found = traced()
    for cell in (0, 1):
        own = [run for run in found if run.root.attributes[semconv.BENCHMARK_CELL] == cell]
        assert [run.root.attributes.get(semconv.WARMUP) for run in own] == [True, None, None, None]
        assert [run.root.attributes.get(semconv.BENCHMARK_REPEAT) for run in own] == [None, 0, 1, 2]
        assert len({(run.root.attributes[semconv.BATCH_SIZE], tuple(s.name for s in run.spans)) for run in own}) == 1
    row = document()["results"][1]
    walls = [run["measurement"]["wall"] for run in row["runs"]]
    assert len(walls) == 3
    assert row["wall_time"] == sorted(walls)[1]
    assert row["minimum"]["wall_time"] == min(walls)
    assert row["spread"]["wall_time"] == max(walls) - min(walls)
    # Guidance is calibrated after the warm-up, so its cost is known.
    assert all(run["measurement"]["stages"]["llm_planning"]["cfg_overhead"] is not None for run in row["runs"])
    assert "Minimum + spread of the runs:" in capsys.readouterr().out


def test_an_out_of_memory_cell_is_a_row_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """R46."""
    compose, calls = Planner.compose_codes, []

    def full(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise OutOfMemory("no room for 3 GiB", stage="lm.codes")
        return compose(*arguments)

    monkeypatch.setattr(Planner, "compose_codes", full)
    assert benchmark("--no-warmup", "--repeat", "2") == 1
    shown = capsys.readouterr()
    assert shown.err == "error: 1 of 4 cells failed\n"
    assert [row[-1] for row in table(shown.out)] == ["OK", "OK", "OutOfMemory", "OK"]
    failed = document()["results"][2]
    assert (failed["status"], failed["wall_time"]) == ("error", None)
    assert failed["error"] == {"type": "OutOfMemory", "message": "no room for 3 GiB", "stage": "lm.codes"}
    # The first run failed, so the second was not tried; what it had measured is kept.
    (run,) = failed["runs"]
    assert run["measurement"]["stages"]["llm_planning"]["total"] > 0


FULL_STAGES: dict[str, tuple[Any, str, Callable[[tuple[Any, ...], dict[str, Any]], int]]] = {
    "condition": (renderer, "encode_prompt", lambda arguments, _: len(arguments[1].seeds)),
    "dit": (Renderer, "denoise_step", lambda arguments, _: len(arguments[1])),
    # Songs are decoded one by one, and one of ten seconds is one tile.
    "vae.decode": (VaeDecoder, "decode_tile", lambda _, options: options["tile"].index + 1),
}
"""Where a stage can be made to fail, and how many songs it is working on."""


class FullDevice:
    """A double of a device on which two songs at once do not fit, in one stage of the renderer.

    What the failing stage holds stays alive as long as anything holds its frame, which is what a kept exception does.
    """

    def __init__(self, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
        owner, name, self._songs = FULL_STAGES[stage]
        self._monkeypatch = monkeypatch
        self._work = getattr(owner, name)
        self.held: list[weakref.ref[torch.Tensor]] = []
        self.alive_afterwards: list[bool] = []
        self.emptied = 0
        # A function, which becomes a method of every renderer; a bound method would not.
        monkeypatch.setattr(owner, name, lambda *arguments, **options: self._run(*arguments, **options))

    def _run(self, *arguments: Any, **options: Any) -> Any:
        self.alive_afterwards += [reference() is not None for reference in self.held]
        if self._songs(arguments, options) < 2:
            return self._work(*arguments, **options)
        activations = torch.ones(1_000_000)
        self.held.append(weakref.ref(activations))
        # From here on there seems to be a GPU whose cache can be emptied.
        self._monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        self._monkeypatch.setattr(torch.cuda, "empty_cache", self._empty)
        raise torch.OutOfMemoryError(f"no room beside {activations.numel() * 4} bytes")

    def _empty(self) -> None:
        self.emptied += 1
        self._monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("stage", FULL_STAGES)
@pytest.mark.parametrize("warmup", [True, False])
def test_a_cell_that_does_not_fit_gives_its_memory_back_before_the_next_one(
    stage: str, warmup: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """R46: status, later rows and file are right, and nothing of the failed run is alive when the next cell starts."""
    monkeypatch.setenv("MAX_CUDA_VRAM", "12")
    device = FullDevice(stage, monkeypatch)
    flags = ("--inference-steps", "1", *(() if warmup else ("--no-warmup",)))
    # Batch sizes 1, 2 and 4; the second and third do not fit. The cells that think come last.
    assert benchmark(*flags) == 1
    shown = capsys.readouterr()
    assert shown.err == "error: 4 of 6 cells failed\n"
    assert [(row[1], row[2], row[-1]) for row in table(shown.out)] == [
        ("1", "False", "OK"), ("1", "True", "OK"),
        ("2", "False", "OutOfMemory"), ("2", "True", "OutOfMemory"),
        ("4", "False", "OutOfMemory"), ("4", "True", "OutOfMemory"),
    ]  # fmt: skip
    assert shown.out.count(f"OutOfMemory: out of memory in stage '{stage}': no room beside 4000000 bytes") == 4
    for row in document()["results"]:
        if row["config"]["batch_size"] == 1:
            assert (row["status"], row["error"]) == ("ok", None)
            assert row["wall_time"] > 0
        else:
            assert (row["status"], row["wall_time"], row["minimum"]) == ("error", None, None)
            assert (row["error"]["type"], row["error"]["stage"]) == ("OutOfMemory", stage)
            # A run is in the file once it was measured; a warm-up never is.
            assert len(row["runs"]) == (0 if warmup else 1)
    assert device.emptied == len(device.held) == 4
    assert device.alive_afterwards
    assert not any(device.alive_afterwards)


def test_a_language_model_that_does_not_fit_fails_the_cells_that_think(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """R46."""

    def full(*_arguments: Any, **_options: Any) -> Any:
        raise torch.OutOfMemoryError("no room for the language model")

    monkeypatch.setattr(checkpoints, "build_language_model", full)
    assert benchmark("--no-warmup", "--inference-steps", "1") == 1
    assert [row[-1] for row in table(capsys.readouterr().out)] == ["OK", "OutOfMemory"]
    assert document()["results"][1]["error"]["stage"] == "model.load"


def test_an_engine_error_needs_no_traceback_and_a_defect_has_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = iter([torch.OutOfMemoryError("no room"), ZeroDivisionError("a bug")])

    def fail(*_arguments: Any, **_options: Any) -> Any:
        raise next(errors)

    monkeypatch.setattr(VaeDecoder, "decode_tile", fail)
    assert benchmark("--no-warmup", "--inference-steps", "1") == 1
    shown = capsys.readouterr()
    assert "10 s x 1, not thinking, 1 steps: OutOfMemory: out of memory in stage 'vae.decode': no room" in shown.out
    assert "Traceback" in shown.err
    assert "ZeroDivisionError: a bug" in shown.err
    assert "OutOfMemory" not in shown.err


def test_a_warm_up_that_fails_is_a_failed_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    denoise = Renderer.denoise_step
    left = iter([True])

    def first_fails(*arguments: Any, **options: Any) -> Any:
        if next(left, False):
            raise torch.OutOfMemoryError("no room")
        return denoise(*arguments, **options)

    monkeypatch.setattr(Renderer, "denoise_step", first_fails)
    assert benchmark("--inference-steps", "1") == 1
    failed, fine = document()["results"]
    assert (failed["status"], failed["runs"], fine["status"]) == ("error", [], "ok")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_keeps_the_rows_so_far(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decode = VaeDecoder.decode_tile
    calls = []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        return decode(*arguments, **options)

    monkeypatch.setattr(VaeDecoder, "decode_tile", interrupted)
    try:
        ended: object = benchmark("--no-warmup")
    except SystemExit as error:
        ended = error.code
    assert ended == code
    shown = capsys.readouterr().out
    assert len(table(shown)) == 1
    assert "Stopped after 1 of 4 cells." in shown
    found = document()
    assert (len(found["results"]), found["benchmark"]["cells"]) == (1, 4)
    assert len(traced()) == 2


def test_the_result_file_is_written_after_every_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    decode = VaeDecoder.decode_tile

    def look(*arguments: Any, **options: Any) -> Any:
        counts.append(len(document()["results"]) if Path("result.json").exists() else 0)
        return decode(*arguments, **options)

    monkeypatch.setattr(VaeDecoder, "decode_tile", look)
    assert benchmark("--no-warmup") == 0
    assert counts == [0, 1, 2, 3]


def test_metrics_of_every_cell_reach_the_collector() -> None:
    with grpc_receiver() as received:
        assert benchmark("--no-warmup", "--inference-steps", "1", "--otlp-endpoint", received.endpoint) == 0
        names = received.metric_names()
    for metric in ("wall", "lm", "dit", "vae", "cells"):
        assert f"acestep.benchmark.{metric}" in names


def test_a_tier_can_be_tried_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """R162."""
    monkeypatch.setenv("MAX_CUDA_VRAM", "8")
    assert benchmark("--no-warmup", "--thinking", "--inference-steps", "1") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("2 cells, limits of tier4 (8.0 GiB of GPU memory)\nclamped, thinking: batch size 4 -> 2\n")
    assert [row[1] for row in table(shown)] == ["1", "2"]


def test_the_result_file_can_be_compared() -> None:
    assert benchmark("--no-warmup", "--inference-steps", "1") == 0
    read = ResultFile.read(Path("result.json"))
    assert list(read.cells) == [Cell(10, 1, False, 1), Cell(10, 1, True, 1)]
    assert main(["compare", "result.json", "result.json", "--threshold", "1"]) == 0


def test_songs_are_not_kept() -> None:
    assert benchmark("--no-warmup", "--inference-steps", "1", "--output-dir", "songs") == 0
    assert sorted(path.name for path in Path().iterdir()) == ["result.json", "trace.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--detail", "off"], "a benchmark computes its values from the trace"),
        (["--repeat", "0"], "'--repeat': 0 is not in the range 1<=x"),
        (["--batch-size", "9"], "--batch-size 9 is out of range"),
        (["--detailed"], "--detailed belongs to --mode profile, understand"),
        (["--torch-profile"], "--torch-profile belongs to --mode profile"),
        (["--llm-debug"], "--llm-debug belongs to --mode profile"),
        (["--mode", "profile", "--repeat", "2"], "--repeat belongs to --mode benchmark"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark(*arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert not Path("result.json").exists()


def test_a_wrong_simulated_size_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MAX_CUDA_VRAM", "large")
    assert benchmark() == 2
    assert "MAX_CUDA_VRAM='large' is not a size" in capsys.readouterr().err


def test_a_missing_language_model_is_found_before_the_first_cell(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--mode", "benchmark", "--device", "cpu", "--config-path", "acestep-v15-tiny", "--lm-model", "absent"]
    assert main([*arguments, "--duration", "10"]) == 2
    assert "no weights for 'absent'" in capsys.readouterr().err
