"""The user's guide as tests: one per requirement of its general, quick-start and profile parts, by number.

Commands of the guide run as they stand there, with what a small machine needs added: tiny models, ten seconds of
audio, three steps. What asks for hardware that is not here must say so in one line.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest
import torch

from acestep import checkpoints
from acestep.inference import MusicPipeline
from acestep.renderer import preparation
from acestep.renderer.preparation import compile_models
from acestep.renderer.renderer import Renderer
from acestep.types import GenerationRequest
from acestep_otel.profiler.benchmark import cells
from acestep_otel.profiler.cli import command, main
from acestep_otel.profiler.run import measurement
from tests.programs import program

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--tiny", "--duration", "10", "--inference-steps", "3", "--audio-format", "wav")
ROWS = (
    "LLM Planning (total)",
    "├─ Token generation",
    "├─ Constrained decoding",
    "└─ CFG overhead",
    "DiT Diffusion (total)",
    "├─ Per-step average",
    "└─ Steps",
    "VAE Decode",
    "Audio Save",
    "Other / Overhead",
    "Wall Time (total)",
)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    # The same machine everywhere: one without a GPU.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def table(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, str]]:
    """Runs a command of the guide and returns the rows of the table it prints: name to time."""

    def run(*arguments: str) -> dict[str, str]:
        assert main([*SMALL, *arguments]) == 0
        lines = capsys.readouterr().out.splitlines()
        return {row: line.split(row)[1].split()[0] for row in ROWS for line in lines if row in line}

    return run


@pytest.fixture
def generations(monkeypatch: pytest.MonkeyPatch) -> list[GenerationRequest]:
    """Every request that reaches the engine, warm-ups included."""
    seen: list[GenerationRequest] = []
    original = MusicPipeline.generate

    def remember(self, request, *options):  # type: ignore[no-untyped-def]
        seen.append(request)
        return original(self, request, *options)

    monkeypatch.setattr(MusicPipeline, "generate", remember)
    return seen


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*SMALL, *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    return shown.err


def test_r1_the_script_at_the_root_runs_in_profile_mode_without_a_mode():
    done = subprocess.run(
        [sys.executable, str(ROOT / "profile_inference.py"), *SMALL], capture_output=True, text=True, check=True
    )
    assert "TIME COSTS BREAKDOWN" in done.stdout
    assert "Traceback" not in done.stderr


def test_r2_every_run_reports_wall_planning_diffusion_and_vae(table):
    rows = table("--thinking")
    assert all(float(rows[row]) > 0 for row in (ROWS[0], ROWS[4], ROWS[7], ROWS[10]))


def test_r3_there_are_exactly_six_modes():
    (mode,) = [parameter for parameter in command.params if parameter.name == "mode"]
    assert list(mode.type.choices) == [
        "profile",
        "benchmark",
        "tier-test",
        "understand",
        "create_sample",
        "format_sample",
    ]


def test_r3_an_unknown_mode_is_refused(capsys):
    assert "karaoke" in refusal(capsys, "--mode", "karaoke")


def test_r4_profile_is_one_measured_generation_with_a_breakdown(table, generations):
    assert set(table("--mode", "profile", "--no-warmup")) == set(ROWS)
    assert len(generations) == 1


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(("--device", "cuda"), id="r10"),
        pytest.param(("--device", "mps"), id="r11"),
        pytest.param(("--device", "mps", "--lm-backend", "mlx"), id="r16 r21 r137"),
        pytest.param(("--device", "cuda", "--lm-backend", "vllm"), id="r14 r136"),
    ],
)
def test_hardware_that_is_not_here_is_refused_by_name(capsys, flags):
    error = refusal(capsys, "--thinking", *flags)
    assert any(word in error for word in flags[1::2])
    assert "Traceback" not in error


def test_r12_r15_r138_the_cpu_baseline_runs(table):
    assert float(table("--device", "cpu", "--lm-backend", "pt", "--thinking")["Wall Time (total)"]) > 0


def test_r13_r17_auto_is_the_default_and_takes_the_best_there_is(capsys):
    assert main([*SMALL, "--thinking"]) == 0
    assert "(pt) on cpu" in capsys.readouterr().out


def test_r18_no_flags_profile_text2music(table, generations):
    table()
    assert {(request.task_type, request.thinking) for request in generations} == {("text2music", False)}


def test_r19_r32_thinking_writes_codes(table, generations):
    assert float(table("--thinking")["LLM Planning (total)"]) > 0
    assert all(request.thinking for request in generations)


def test_r23_r158_a_warm_up_of_the_same_shape_comes_first(table, generations):
    table("--batch-size", "2")
    warmup, measured = generations
    assert warmup == measured


def test_r24_r153_wall_time_is_end_to_end_and_the_rows_sum_to_it(table):
    rows = {row: float(time) for row, time in table("--thinking", "--use-cot-caption").items()}
    top = ("LLM Planning (total)", "DiT Diffusion (total)", "VAE Decode", "Audio Save", "Other / Overhead")
    assert sum(rows[row] for row in top) == pytest.approx(rows["Wall Time (total)"], abs=0.03)


def test_r25_the_planner_is_split_in_three(table):
    rows = {row: float(time) for row, time in table("--thinking", "--use-cot-metas").items()}
    parts = ("├─ Token generation", "├─ Constrained decoding", "└─ CFG overhead")
    assert sum(rows[part] for part in parts) == pytest.approx(rows["LLM Planning (total)"], abs=0.02)


def test_r26_r27_r28_steps_decode_and_save_have_rows(table):
    rows = table()
    assert rows["└─ Steps"] == "3"
    assert float(rows["DiT Diffusion (total)"]) == pytest.approx(3 * float(rows["├─ Per-step average"]), abs=0.02)
    assert float(rows["VAE Decode"]) > 0
    assert float(rows["Audio Save"]) >= 0


def test_r29_no_warmup_generates_once(table, generations):
    table("--no-warmup")
    assert len(generations) == 1


def test_r31_llm_debug_shows_token_counts_and_throughput(capsys):
    assert main([*SMALL, "--thinking", "--llm-debug"]) == 0
    shown = capsys.readouterr().out
    assert "Tokens/sec" in shown
    assert re.search(r"Sampled\D+50\b", shown)


def test_r33_duration_overrides_the_example(table, generations):
    table("--duration", "12")
    assert {request.duration for request in generations} == {12.0}


def test_r34_batch_size_makes_that_many_songs(table):
    table("--batch-size", "3")
    assert len(list(Path("output").glob("song-*.wav"))) == 3


def test_r35_inference_steps_changes_what_is_executed(table, monkeypatch):
    executed = []
    original = Renderer.denoise_step

    def count(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        executed.append(kwargs["step"].index)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Renderer, "denoise_step", count)
    table("--no-warmup", "--inference-steps", "5")
    assert executed == [0, 1, 2, 3, 4]


def test_r99_r100_r101_nothing_is_offloaded_or_quantised_unless_asked_for(table):
    table("--no-warmup", "--benchmark-output", "result.json")
    (result,) = json.loads(Path("result.json").read_text(encoding="utf-8"))["results"]
    assert result["effective_settings"]["placement"] == {
        "offload_to_cpu": False,
        "offload_dit_to_cpu": False,
        "quantization": None,
        "compile": False,
        "automatic_offload": False,
    }


def test_r143_offload_and_quantisation_run_without_further_variables(capsys, monkeypatch):
    program("c++")
    # PyTorch's own compiler takes a minute here; that its graphs are those that run is tested with the renderer.
    monkeypatch.setattr(preparation, "compile_models", partial(compile_models, backend="eager"))
    flags = ("--no-warmup", "--offload-to-cpu", "--quantization", "int8_weight_only")
    assert main([*SMALL, *flags, "--benchmark-output", "result.json"]) == 0
    shown = capsys.readouterr()
    assert "DiT quantised: int8_weight_only; compiled" in shown.out
    assert shown.err == ""
    (result,) = json.loads(Path("result.json").read_text(encoding="utf-8"))["results"]
    assert result["effective_settings"]["placement"]["quantization"] == "int8_weight_only"
    assert result["effective_settings"]["placement"]["compile"] is True


def test_r101_there_are_three_forms_and_others_are_refused(capsys):
    (option,) = [parameter for parameter in command.params if parameter.name == "quantization"]
    assert list(option.type.choices) == ["int8_weight_only", "fp8_weight_only", "w8a8_dynamic"]
    assert "int4" in refusal(capsys, "--quantization", "int4")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--offload-to-cpu",), "--offload-to-cpu has no effect: this device has no separate memory"),
        (("--offload-dit-to-cpu",), "--offload-dit-to-cpu has no effect without --offload-to-cpu"),
    ],
)
def test_r133_r134_a_flag_without_effect_says_so(capsys, flags, line):
    assert main([*SMALL, "--no-warmup", *flags]) == 0
    assert line in capsys.readouterr().out.splitlines()


def noted(order: list[str], function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which also enters its name when it is called."""

    @wraps(function)
    def noting(*args: Any, **kwargs: Any) -> Any:
        order.append(function.__name__)
        return function(*args, **kwargs)

    return noting


@pytest.mark.parametrize(
    ("mode", "flags"),
    [
        ("profile", SMALL),
        ("benchmark", (*SMALL, "--batch-size", "1")),
        *((mode, ("--tiny", "--lyrics-token-limit", "8")) for mode in ("understand", "create_sample", "format_sample")),
    ],
)
def test_r165_in_every_mode_the_memory_cap_is_set_before_anything_is_loaded(monkeypatch, mode, flags):
    order: list[str] = []
    for module in (measurement, cells):
        monkeypatch.setattr(module, "enforce_memory_cap", lambda device, limit: order.append(f"cap on {device}"))
    for name in ("load_renderer_models", "load_language_model"):
        monkeypatch.setattr(checkpoints, name, noted(order, getattr(checkpoints, name)))
    main(["--mode", mode, *flags, "--no-warmup"])
    assert order[0] == "cap on cpu"
    assert order.count("cap on cpu") == 1
    assert len(order) > 1


def test_r165_a_size_that_is_none_is_refused_by_name(capsys, monkeypatch):
    monkeypatch.setenv("MAX_CUDA_VRAM", "8GB")
    assert "MAX_CUDA_VRAM='8GB'" in refusal(capsys)


def test_r142_chain_of_thought_flags_run_together(table):
    assert float(table("--thinking", "--use-cot-metas", "--use-cot-caption")["├─ Token generation"]) > 0


def test_r159_the_result_records_hardware_versions_and_settings(table):
    table("--benchmark-output", "result.json")
    found = json.loads(Path("result.json").read_text(encoding="utf-8"))
    assert found["environment"]["packages"]["torch"] == torch.__version__
    assert found["environment"]["cpu_cores"] >= 1
    assert found["arguments"]["tiny"] is True
    assert found["results"][0]["effective_settings"]["device"] == "cpu"


def test_r160_thinking_off_and_on_differ_in_nothing_else(table, generations):
    table("--no-warmup")
    table("--no-warmup", "--thinking")
    plain, thinking = generations
    assert plain.seeds == thinking.seeds
    assert plain.duration == thinking.duration
    assert (plain.thinking, thinking.thinking) == (False, True)


def test_r161_long_songs_are_supported_to_600_seconds(table, generations):
    table("--no-warmup", "--duration", "600", "--inference-steps", "1")
    assert generations[0].duration == 600


def test_r163_function_profiles_are_off_unless_asked_for(table):
    table()
    assert not list(Path().rglob("*.prof"))
