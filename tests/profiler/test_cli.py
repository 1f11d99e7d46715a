"""The command line: every flag of the benchmark guide with its default (R95 ... R132), and one line per refusal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep_otel import __version__
from acestep_otel.profiler.cli import command, main, repeat_flag

ROOT = Path(__file__).resolve().parents[2]

# Group, flag and default as the guide's reference lists them; None: no default of its own.
REFERENCE: list[tuple[str, str, Any]] = [
    ("Device & Backend", "--device", "auto"),
    ("Device & Backend", "--lm-backend", "auto"),
    ("Model Paths", "--config-path", "acestep-v15-turbo"),
    ("Model Paths", "--lm-model", "acestep-5Hz-lm-1.7B"),
    ("Hardware Options", "--offload-to-cpu", False),
    ("Hardware Options", "--offload-dit-to-cpu", False),
    ("Hardware Options", "--quantization", None),
    ("Generation Parameters", "--duration", None),
    ("Generation Parameters", "--batch-size", None),
    ("Generation Parameters", "--inference-steps", None),
    ("Generation Parameters", "--seed", None),
    ("Generation Parameters", "--guidance-scale", 7.0),
    ("LLM / CoT Parameters", "--thinking", False),
    ("LLM / CoT Parameters", "--use-cot-metas", False),
    ("LLM / CoT Parameters", "--use-cot-caption", False),
    ("LLM / CoT Parameters", "--use-cot-language", False),
    ("LLM / CoT Parameters", "--use-constrained-decoding", True),
    ("LLM / CoT Parameters", "--no-constrained-decoding", True),
    ("LLM / CoT Parameters", "--lm-temperature", 0.85),
    ("LLM / CoT Parameters", "--lm-cfg-scale", 2.0),
    ("Profiling Options", "--mode", "profile"),
    ("Profiling Options", "--no-warmup", False),
    ("Profiling Options", "--detailed", False),
    ("Profiling Options", "--llm-debug", False),
    ("Profiling Options", "--benchmark-output", None),
    ("Tier-Test Options", "--tiers", (4, 6, 8, 12, 16, 20, 24)),
    ("Tier-Test Options", "--tier-with-lm", False),
    ("Tier-Test Options", "--tier-skip-compile", False),
    ("Tier-Test Options", "--tier-boundary", False),
    ("Tier-Test Options", "--tier-batch-boundary", False),
    ("Input Options", "--example", "example_05.json"),
    ("Input Options", "--task-type", "text2music"),
    ("Input Options", "--reference-audio", None),
    ("Input Options", "--src-audio", None),
    ("Input Options", "--sample-query", None),
    ("Input Options", "--instrumental", False),
    ("Input Options", "--audio-codes", None),
]


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SDK_DISABLED", "ACESTEP_OTEL_DETAIL"):
        monkeypatch.delenv(name, raising=False)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a refused command prints."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    return captured.err.removeprefix("error: ").rstrip("\n")


def values_of(*arguments: str) -> dict[str, Any]:
    return command.make_context("test", list(arguments)).params


def test_the_reference_is_complete_and_in_order() -> None:
    """R132, and the groups of the guide."""
    listed = [
        (group.title, flag)
        for group in command.option_groups
        for parameter in group.options
        for flag in (*parameter.opts, *parameter.secondary_opts)
    ]
    assert listed[: len(REFERENCE)] == [(group, flag) for group, flag, _ in REFERENCE]
    ours = {"Sampler Options", "Task Options", "Measurement", "Weights & Output", "Tracing"}
    assert {group for group, _ in listed[len(REFERENCE) :]} == ours


@pytest.mark.parametrize(
    ("flag", "default"),
    [pytest.param(flag, default, id=f"r{95 + row}") for row, (_, flag, default) in enumerate(REFERENCE)],
)
def test_defaults(flag: str, default: Any) -> None:
    """R95 ... R131, a row of the reference each."""
    (name,) = [parameter.name for parameter in command.params if flag in (*parameter.opts, *parameter.secondary_opts)]
    assert values_of()[name] == default


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for group, flag, _ in REFERENCE:
        assert f"{group}:" in shown
        assert re.search(rf"{flag}\b", shown)
    assert re.findall(r"4 6 8 12 16 20 24", shown)


def test_no_constrained_decoding_switches_it_off() -> None:
    """R112."""
    assert values_of("--no-constrained-decoding")["use_constrained_decoding"] is False


@pytest.mark.parametrize(
    "arguments",
    [["--tiers", "6", "8", "16"], ["--tiers", "6", "--tiers", "8", "16"], ["--tiers=6", "--tiers", "8", "16"]],
)
def test_tiers_takes_several_values(arguments: list[str]) -> None:
    values = values_of("--thinking", *arguments, "--mode", "tier-test")
    assert values["tiers"] == (6, 8, 16)
    assert values["mode"] == "tier-test"


words = st.text(alphabet="abc123", min_size=1, max_size=3)


@given(st.lists(st.one_of(words, words.map("-".__add__), st.just("--tiers"))))
def test_repeating_a_flag_keeps_every_value_and_gives_each_a_flag(arguments: list[str]) -> None:
    repeated = list(repeat_flag("--tiers", arguments))
    assert [word for word in repeated if word != "--tiers"] == [word for word in arguments if word != "--tiers"]
    # Once repeated, there is nothing left to repeat.
    assert list(repeat_flag("--tiers", repeated)) == repeated


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bogus"], "No such option '--bogus'"),
        (["--quantization", "int4"], "'int4' is not one of 'int8_weight_only'"),
        (["--task-type", "remix"], "'remix' is not one of 'text2music'"),
        (["--duration", "long"], "'long' is not a valid float"),
        (["--duration", "5"], "--duration 5 s is out of range: 10 ... 600 s"),
        (["--duration", "601"], "--duration 601 s is out of range: 10 ... 600 s"),
        (["--duration", "nan"], "'--duration': 'nan' is not a finite number"),
        (["--batch-size", "0"], "--batch-size 0 is out of range: 1 ... 8"),
        (["--batch-size", "9"], "--batch-size 9 is out of range: 1 ... 8"),
        (["--inference-steps", "0"], "--inference-steps 0 is out of range: 1"),
        (["--device", "tpu"], "--device 'tpu': choose auto, cuda, cuda:N, mps or cpu"),
        (["--audio-format", "midi"], "midi"),
        (["--example", "example_99.json"], "no example 'example_99.json'; there are: example_01.json"),
        (["--tiny", "--lm-model", "x"], "--tiny selects its own models: leave out --lm-model"),
        (["--otlp-endpoint", "localhost:4317"], "--otlp-endpoint 'localhost:4317' is not a URL"),
        (["--benchmark-output", "."], "cannot write .: it is a directory"),
        (["--trace-output", "/dev/null/trace.jsonl"], "cannot write /dev/null/trace.jsonl"),
        (["--output-dir", "/dev/null/songs"], "output directory /dev/null/songs cannot be written to"),
        (["--seed", "99999999999"], "--seed 99999999999 is out of range: 0 ... 4294967295"),
        (["--mode", "understand", "--duration", "20"], "--duration belongs to --mode profile, benchmark, tier-test"),
        (["--mode", "create_sample", "--thinking"], "--thinking belongs to --mode profile, benchmark, tier-test"),
        (["--mode", "create_sample", "--example", "a.json"], "--example belongs to --mode profile, benchmark, tier-"),
        (["--lyrics-token-limit", "9"], "--lyrics-token-limit belongs to --mode understand, create_sample"),
        (["--lm-cfg-scale", "0.5"], "--lm-cfg-scale 0.5 is out of range"),
        (["--sample-query", "rain"], "--sample-query belongs to --mode create_sample"),
        (
            ["--mode", "understand", "--quantization", "int8_weight_only"],
            "--quantization belongs to --mode profile, benchmark",
        ),
        (
            ["--mode", "create_sample", "--offload-dit-to-cpu"],
            "--offload-dit-to-cpu belongs to --mode profile, benchmark",
        ),
        (["--instrumental"], "--instrumental belongs to --mode create_sample"),
        (["--audio-codes", "1"], "--audio-codes belongs to --mode understand"),
        (["--mode", "understand", "--audio-codes", "1,x"], "'x' is not an audio code: write"),
        (["--mode", "understand", "--audio-codes", "1,,2"], "'' is not an audio code: write"),
        (["--mode", "understand", "--audio-codes", "-1"], "'-1' is not an audio code: write"),
        (["--mode", "understand", "--audio-codes", "<|audio_code_1|>2"], "'<|audio_code_1|>2' is not an audio code"),
        (["--mode", "understand", "--audio-codes", "64000"], "--audio-codes: code 64000 is out of range: 0 ... 63999"),
        (["--mode", "understand", "--lyrics-token-limit", "0"], "--lyrics-token-limit 0 is out of range: 1 ... 4096"),
        (["--mode", "create_sample", "--lm-temperature", "-1"], "--lm-temperature -1 is out of range: 0 ... 2"),
        (["--mode", "format_sample", "--example", "none.json"], "no example 'none.json'"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = [] if "--tiny" in arguments else ["--tiny"]
    assert message in refusal(capsys, *tiny, *arguments)


def test_cuda_asked_for_and_absent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "device 'cuda' was requested" in refusal(capsys, "--tiny", "--device", "cuda")


def test_weights_that_are_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--weights synthetic" in refusal(capsys, "--device", "cpu")


def test_a_wrong_word_in_the_environment(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACESTEP_OTEL_DETAIL", "everything")
    assert "ACESTEP_OTEL_DETAIL: 'everything' is not a detail level" in refusal(capsys, "--tiny")


def test_an_example_with_a_broken_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text('{\n  "caption": "a",\n  "bpm" 100\n}', encoding="utf-8")
    assert refusal(capsys, "--tiny", "--example", str(path)).startswith(f"{path}, line 3, column ")


def test_an_example_with_an_unknown_key(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    path.write_text(json.dumps({"caption": "a", "keyscale": "H minor"}), encoding="utf-8")
    assert "'H minor'" in refusal(capsys, "--tiny", "--example", str(path))


@pytest.mark.parametrize("program", [["-m", "acestep_otel.profiler"], [str(ROOT / "profile_inference.py")]])
def test_every_entry_is_the_same_command(program: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    shown = subprocess.run(
        [sys.executable, *program, "--version"], capture_output=True, text=True, check=True, env=environment
    )
    assert shown.stdout == f"acestep-otel, version {__version__}\n"
    refused = subprocess.run([sys.executable, *program, "--bogus"], capture_output=True, text=True, env=environment)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: No such option '--bogus'")


def test_help_does_not_wait_for_pytorch() -> None:
    program = "import sys; from acestep_otel.profiler.cli import main; main(['--help']); print('torch' in sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert shown.stdout.endswith("False\n")


def test_a_password_in_an_endpoint_is_in_no_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """N15: not in the result, the page, the trace or what is printed."""
    outputs = [tmp_path / name for name in ("result.json", "page.html", "trace.jsonl")]
    flags = ("--benchmark-output", "--report", "--trace-output")
    arguments = [word for pair in zip(flags, map(str, outputs), strict=True) for word in pair]
    endpoint = "http://user:PLANTED@127.0.0.1:9"
    run = ["--tiny", "--no-warmup", "--duration", "10", "--inference-steps", "1", "--output-dir", str(tmp_path)]
    assert main([*run, "--otlp-endpoint", endpoint, *arguments]) == 0
    said = capsys.readouterr()
    assert "telemetry was lost" in said.err.splitlines()[-1]
    assert "PLANTED" not in said.out + said.err + "".join(path.read_text("utf-8") for path in outputs)


def test_help_shows_no_range_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "None" not in capsys.readouterr().out


def test_a_message_that_quotes_a_long_text_is_shortened_in_the_middle(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "9" * 100_000)
    assert said.startswith("No such command '999")
    assert said.endswith("(see --help)")
    assert len(said) < 2_100
