"""Modes understand, create_sample and format_sample, run for real on the tiny language model."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch

from acestep import checkpoints
from acestep.blueprints import BlueprintWriter
from acestep.planner.backends.pt import PtBackend
from acestep.types import EffectivePlannerSettings, Placement, SongBlueprint, SongMetadata
from acestep_otel import semconv
from acestep_otel.profiler.cli import main
from acestep_otel.profiler.language_model_modes import DEFAULT_QUERY, render_blueprint
from acestep_otel.profiler.options import DEFAULTS
from acestep_otel.profiler.report.breakdown import Breakdown
from acestep_otel.profiler.report.spans import Run, measured_runs, runs
from acestep_otel.profiler.report.statistics import token_statistics
from acestep_otel.profiler.report.terminal import render_breakdown, render_token_statistics
from acestep_otel.profiler.run.example import load_example
from tests.profiler.outputs import OUTPUTS, result, traced

ROOTS = {
    "understand": semconv.UNDERSTAND_MUSIC,
    "create_sample": semconv.CREATE_SAMPLE,
    "format_sample": semconv.FORMAT_SAMPLE,
}
METHODS = {"understand": "understand", "create_sample": "create", "format_sample": "format"}
SHORT = ("--tiny", "--device", "cpu", "--lyrics-token-limit", "16")
MODES = pytest.mark.parametrize("mode", list(ROOTS))


def run_mode(mode: str, *arguments: str) -> int:
    return main([*SHORT, *OUTPUTS, "--mode", mode, *arguments])


def measured(mode: str) -> Run:
    (run,) = measured_runs(traced(), ROOTS[mode])
    return run


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[Any, ...]]]:
    """Every call of a verb: its mode, and its arguments behind the planner."""
    made: list[tuple[str, tuple[Any, ...]]] = []
    for mode, name in METHODS.items():
        original = getattr(BlueprintWriter, name)

        @wraps(original)
        def record(*arguments: Any, mode: str = mode, original: Any = original) -> Any:
            made.append((mode, arguments[1:]))
            return original(*arguments)

        monkeypatch.setattr(BlueprintWriter, name, record)
    return made


@MODES
def test_a_run_leaves_a_blueprint_a_table_a_trace_and_a_result(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    """R47, R50, R54."""
    assert run_mode(mode) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    run = measured(mode)
    breakdown = Breakdown.of(run)
    assert render_breakdown(breakdown) in shown.out
    assert breakdown.planner > 0
    assert (breakdown.diffusion, breakdown.steps, breakdown.vae_decode, breakdown.audio_save) == (0, 0, 0, 0)
    assert breakdown.guidance == 0

    entry = result()
    assert (entry["status"], entry["songs"]) == ("ok", [])
    assert entry["effective_settings"]["lm_model"] == "acestep-5Hz-lm-tiny"
    assert entry["effective_settings"]["seeds"] == [42]
    assert entry["measurement"]["wall"] == breakdown.wall
    assert [phase["phase"] for phase in entry["measurement"]["token_statistics"]] == ["lm.cot", "lm.lyrics"]
    metadata = entry["blueprint"]["metadata"]
    for line in (
        f"  Caption         {metadata['caption']}",
        f"  BPM             {metadata['bpm']}",
        f"  Duration        {metadata['duration']} s",
        f"  Key             {metadata['keyscale']}",
        f"  Language        {metadata['language']}",
        f"  Time signature  {metadata['timesignature']}",
    ):
        assert f"{line}\n" in shown.out
    for line in entry["blueprint"]["lyrics"].splitlines():
        assert line in shown.out


@MODES
def test_one_call_is_measured_and_one_like_it_warms_up(mode: str, calls: list[tuple[str, tuple[Any, ...]]]) -> None:
    """R7 ... R9, R158."""
    assert run_mode(mode) == 0
    assert [name for name, _ in calls] == [mode, mode]
    first, second = (arguments[:-1] for _, arguments in calls)
    assert first == second
    warm_up, run = runs(traced(), ROOTS[mode])
    assert warm_up.root.attributes[semconv.WARMUP] is True
    assert semconv.WARMUP not in run.root.attributes


@MODES
def test_no_renderer_is_loaded(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def renderer(*_arguments: object) -> None:
        raise AssertionError("a renderer was loaded")

    monkeypatch.setattr(checkpoints, "load_renderer_models", renderer)
    assert run_mode(mode, "--no-warmup") == 0
    assert [span.attributes[semconv.MODEL_ROLE] for span in traced() if span.name == semconv.MODEL_LOAD] == ["planner"]
    assert not Path("output").exists()


@MODES
def test_llm_debug_adds_the_table_of_the_same_spans(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    """R118, R157."""
    assert run_mode(mode, "--no-warmup", "--llm-debug") == 0
    shown = capsys.readouterr().out
    assert "  Tokens/sec " in shown
    assert render_token_statistics(token_statistics(measured(mode))) in shown
    assert shown.index("TIME COSTS BREAKDOWN") < shown.index("LLM DEBUG")


def test_llm_debug_is_off_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    """R118."""
    assert run_mode("create_sample", "--no-warmup") == 0
    assert "LLM DEBUG" not in capsys.readouterr().out


# Inputs


@pytest.mark.parametrize("text", ["<|audio_code_12|><|audio_code_7|>", "12, 7"])
def test_audio_codes_reach_the_verb(text: str, calls: list[tuple[str, tuple[Any, ...]]]) -> None:
    """R49."""
    assert run_mode("understand", "--no-warmup", "--audio-codes", text) == 0
    assert calls[0][1][0] == (12, 7)
    assert measured("understand").root.attributes[semconv.AUDIO_CODES_COUNT] == 2


def test_understand_runs_without_codes(calls: list[tuple[str, tuple[Any, ...]]]) -> None:
    """R48, R131."""
    assert run_mode("understand", "--no-warmup") == 0
    assert calls[0][1][0] == ()


def test_a_query_and_instrumental_reach_the_verb(calls: list[tuple[str, tuple[Any, ...]]]) -> None:
    """R51 ... R53, R129, R130."""
    for arguments in ((), ("--sample-query", "a soft Bengali love song"), ("--instrumental",)):
        assert run_mode("create_sample", "--no-warmup", *arguments) == 0
    assert [arguments[:2] for _, arguments in calls] == [
        (DEFAULT_QUERY, False),
        ("a soft Bengali love song", False),
        (DEFAULT_QUERY, True),
    ]


def test_format_sample_takes_the_examples_caption_and_lyrics_and_finds_the_rest(
    calls: list[tuple[str, tuple[Any, ...]]],
) -> None:
    """R54: what the example says about tempo and key would leave nothing to find."""
    assert run_mode("format_sample", "--no-warmup", "--example", "example_02.json") == 0
    example = load_example("example_02.json")
    assert calls[0][1][:3] == (example.caption, example.lyrics, SongMetadata())


# Settings of the language model


def test_the_seed_decides_and_a_negative_one_is_random() -> None:
    blueprints = []
    for seed in ("5", "5", "6"):
        assert run_mode("create_sample", "--no-warmup", "--seed", seed) == 0
        blueprints.append(result()["blueprint"])
    assert blueprints[0] == blueprints[1] != blueprints[2]
    seeds = []
    for _ in range(2):
        assert run_mode("create_sample", "--no-warmup", "--seed", "-1") == 0
        seeds.append(result()["effective_settings"]["seeds"])
    assert seeds[0] != seeds[1]


def test_temperature_zero_is_greedy_whatever_the_seed() -> None:
    """R113."""
    blueprints = []
    for seed in ("5", "6"):
        assert run_mode("create_sample", "--no-warmup", "--lm-temperature", "0", "--seed", seed) == 0
        blueprints.append(result()["blueprint"])
    assert blueprints[0] == blueprints[1]


@MODES
def test_no_constrained_decoding_lets_the_model_write_anything(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    """R112: random weights then say nothing that can be read, which is an error that keeps the measurement."""
    assert run_mode(mode, "--no-warmup", "--no-constrained-decoding") == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("error: the language model wrote neither valid metadata nor lyrics")
    assert "TIME COSTS BREAKDOWN" in shown.out
    (cot,) = measured(mode).named(semconv.LM_COT)
    assert cot.attributes[semconv.LM_CONSTRAINED] is False
    assert cot.attributes[semconv.LM_FORCED_TOKENS] == 0
    assert result()["error"]["stage"] == "lm.cot"


# Failures


@MODES
def test_out_of_memory_keeps_what_was_measured(
    mode: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_arguments: object) -> Any:
        raise torch.OutOfMemoryError("no room for 3 GiB")

    monkeypatch.setattr(PtBackend, "generate_lyrics", fail)
    assert run_mode(mode, "--no-warmup", "--llm-debug") == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("error: out of memory in stage 'lm.lyrics'")
    assert "LLM DEBUG" in shown.out
    entry = result()
    assert (entry["status"], entry["blueprint"]) == ("error", None)
    cot, lyrics = entry["measurement"]["token_statistics"]
    assert cot["sampled_tokens"] > 0
    assert lyrics["sampled_tokens"] is None


def test_switched_off_tracing_still_makes_a_blueprint(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_mode("create_sample", "--no-warmup", "--detail", "off", "--llm-debug") == 0
    shown = capsys.readouterr().out
    assert "SONG BLUEPRINT" in shown
    assert "Tracing was off, so there is no breakdown." in shown
    assert result()["measurement"] is None


# The text on the terminal

EFFECTIVE = EffectivePlannerSettings("cpu", "float32", "acestep-5Hz-lm-tiny", "pt", (42,), "synthetic", Placement())


def test_a_blueprint_on_the_terminal() -> None:
    blueprint = SongBlueprint(
        SongMetadata(96, "Warm soul", 180, "C# minor", "en", "4"), "[Verse]\nla\n\nla", True, EFFECTIVE
    )
    assert "\n".join(render_blueprint(blueprint, DEFAULTS)) == (
        "acestep-5Hz-lm-tiny (pt) on cpu, float32, weights: synthetic\nseed 42\n\nSONG BLUEPRINT\n"
        + "=" * 100
        + "\n  Caption         Warm soul\n  BPM             96\n  Duration        180 s\n  Key             C# minor\n"
        "  Language        en\n  Time signature  4\n  Lyrics\n    [Verse]\n    la\n\n    la"
    )


ALL = "(--benchmark-output has them all)"


@pytest.mark.parametrize(
    ("lyrics", "ending"),
    [
        ("la\n" * 60, "la"),
        ("la\n" * 61, f"… 1 more line {ALL}"),
        ("la\n" * 2_048, f"… 1988 more lines {ALL}"),
        ("x" * 2_000, "x" * 2_000),
        ("x" * 2_001, f"… 1 more characters {ALL}"),
        ("x" * 9_000 + "\nla", f"… 7,000 more characters and 1 more line {ALL}"),
        ("x" * 2_000 + "\nla\nla", f"… 2 more lines {ALL}"),
    ],
)
def test_lyrics_are_shown_as_far_as_a_reader_wants_them_and_what_is_left_out_is_counted(
    lyrics: str, ending: str
) -> None:
    """N18."""
    lines = list(render_blueprint(SongBlueprint(SongMetadata(), lyrics, True, EFFECTIVE), DEFAULTS))
    shown = lines[lines.index("  Lyrics") + 1 :]
    assert shown[-1] == f"    {ending}"
    kept = [line.removeprefix("    ") for line in shown if not line.startswith("    …")]
    assert "\n".join(kept) == lyrics[: len("\n".join(kept))]
    assert len(kept) <= 60
    assert sum(map(len, kept)) <= 2_000


def test_the_result_file_has_all_of_the_lyrics(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tiny", "--device", "cpu", "--no-warmup", *OUTPUTS, "--mode", "create_sample"]) == 0
    shown = capsys.readouterr().out
    lyrics = result()["blueprint"]["lyrics"]
    # Random weights write up to 2,048 tokens.
    assert len(lyrics) > 2_000
    assert ALL in shown
    assert len(shown) < 8_000


def test_what_was_not_found_is_a_dash_and_a_cut_is_named() -> None:
    nothing = list(render_blueprint(SongBlueprint(SongMetadata(), "", False, EFFECTIVE), DEFAULTS))
    assert nothing[-8:] == [
        "  Caption         —", "  BPM             —", "  Duration        —", "  Key             —",
        "  Language        —", "  Time signature  —", "  Lyrics", "    —",
    ]  # fmt: skip
    cut = list(render_blueprint(SongBlueprint(SongMetadata(), "la", False, EFFECTIVE), DEFAULTS))
    assert cut[-2:] == ["  Lyrics (truncated at the token limit)", "    la"]
