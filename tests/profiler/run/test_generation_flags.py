"""Every flag that steers the language model or guidance changes what it says (R106 ... R114, R142)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from acestep.types import GenerationResult, SongMetadata
from acestep_otel import semconv
from acestep_otel.profiler.cli import main
from acestep_otel.profiler.report.spans import FinishedSpan, measured_runs
from acestep_otel.profiler.run import profile
from acestep_otel.profiler.run.example import load_example
from tests.profiler.outputs import OUTPUTS, traced

SHORT = ("--device", "cpu", "--duration", "10", "--inference-steps", "2", "--audio-format", "wav", "--no-warmup")
EXAMPLE = load_example("example_05.json")
TOLD = SongMetadata(
    bpm=EXAMPLE.bpm, keyscale=EXAMPLE.keyscale, language=EXAMPLE.language, timesignature=EXAMPLE.timesignature
)


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs mode profile and returns what the engine returned to it."""
    results: list[GenerationResult] = []
    original = profile.generate_music

    def recorded(*arguments: Any, **options: Any) -> GenerationResult:
        results.append(original(*arguments, **options))
        return results[-1]

    def run(*arguments: str, models: tuple[str, ...] = ("--tiny",)) -> GenerationResult:
        assert main([*models, *SHORT, *OUTPUTS, *arguments]) == 0
        return results[-1]

    monkeypatch.setattr(profile, "generate_music", recorded)
    return run


def phases() -> dict[str, FinishedSpan]:
    (run,) = measured_runs(traced())
    return {span.name: span for span in run.spans if span.name in (semconv.LM_COT, semconv.LM_CODES)}


def codes_of(result: GenerationResult) -> tuple[int, ...]:
    return result.songs[0].audio_codes


def test_without_flags_the_language_model_does_nothing(generate: Any) -> None:
    """R107 ... R110."""
    result = generate()
    assert phases() == {}
    assert codes_of(result) == ()
    assert result.metadata == TOLD


def test_thinking_writes_codes_and_decides_nothing(generate: Any) -> None:
    """R107."""
    result = generate("--thinking")
    assert list(phases()) == [semconv.LM_CODES]
    assert len(codes_of(result)) == 50
    assert result.metadata == SongMetadata(**{**_fields(TOLD), "duration": 10})


def test_cot_metas_decides_tempo_key_and_time_signature(generate: Any) -> None:
    """R108."""
    found = generate("--use-cot-metas").metadata
    assert list(phases()) == [semconv.LM_COT]
    assert None not in (found.bpm, found.keyscale, found.timesignature)
    assert (found.bpm, found.keyscale) != (TOLD.bpm, TOLD.keyscale)
    assert (found.caption, found.language, found.duration) == (None, TOLD.language, 10)


def test_cot_caption_rewrites_the_caption_and_nothing_else(generate: Any) -> None:
    """R109."""
    found = generate("--use-cot-caption").metadata
    assert list(phases()) == [semconv.LM_COT]
    assert found.caption
    assert found.caption != EXAMPLE.caption
    assert SongMetadata(**{**_fields(found), "caption": None, "duration": None}) == TOLD


def test_cot_language_detects_the_language_and_nothing_else(generate: Any) -> None:
    """R110."""
    found = generate("--use-cot-language").metadata
    assert list(phases()) == [semconv.LM_COT]
    assert found.language not in (None, TOLD.language)
    assert SongMetadata(**{**_fields(found), "language": TOLD.language, "duration": None}) == TOLD


def test_all_of_them_run_together(generate: Any) -> None:
    """R142."""
    result = generate("--thinking", "--use-cot-metas", "--use-cot-caption", "--use-cot-language")
    assert list(phases()) == [semconv.LM_COT, semconv.LM_CODES]
    assert None not in _fields(result.metadata).values()
    assert len(codes_of(result)) == 50


def test_constrained_decoding_is_on_and_can_be_switched_off(generate: Any) -> None:
    """R111, R112."""
    held = generate("--use-cot-metas").metadata
    cot = phases()[semconv.LM_COT].attributes
    assert cot[semconv.LM_CONSTRAINED] is True
    assert cot[semconv.LM_FORCED_TOKENS] > 0
    assert cot[semconv.LM_CONSTRAINED_DECODING_DURATION] > 0
    free = generate("--use-cot-metas", "--no-constrained-decoding").metadata
    cot = phases()[semconv.LM_COT].attributes
    assert cot[semconv.LM_CONSTRAINED] is False
    assert cot[semconv.LM_FORCED_TOKENS] == 0
    assert cot[semconv.LM_CONSTRAINED_DECODING_DURATION] == 0
    assert held.bpm is not None
    # Random weights do not spell a tempo on their own.
    assert free.bpm is None


def test_lm_temperature_changes_the_codes_and_zero_is_greedy(generate: Any) -> None:
    """R113."""
    usual = codes_of(generate("--thinking"))
    assert codes_of(generate("--thinking", "--lm-temperature", "0.85")) == usual
    assert codes_of(generate("--thinking", "--lm-temperature", "1.5")) != usual
    greedy = [codes_of(generate("--thinking", "--lm-temperature", "0", "--seed", seed)) for seed in ("1", "2")]
    assert greedy[0] == greedy[1] != usual


def test_lm_cfg_scale_changes_the_codes_and_one_is_off(generate: Any) -> None:
    """R114."""
    usual = codes_of(generate("--thinking"))
    assert phases()[semconv.LM_CODES].attributes[semconv.LM_UNCONDITIONAL_TOKENS] > 0
    assert codes_of(generate("--thinking", "--lm-cfg-scale", "2.0")) == usual
    assert codes_of(generate("--thinking", "--lm-cfg-scale", "4")) != usual
    assert codes_of(generate("--thinking", "--lm-cfg-scale", "1")) != usual
    assert phases()[semconv.LM_CODES].attributes[semconv.LM_UNCONDITIONAL_TOKENS] == 0


def test_the_seed_changes_codes_and_sound(generate: Any) -> None:
    """R105."""
    usual, same, other = (generate("--thinking", "--seed", seed).songs[0] for seed in ("42", "42", "43"))
    default = generate("--thinking").songs[0]
    assert default.seed == 42
    for song in (same, default):
        assert song.audio_codes == usual.audio_codes
        assert torch.equal(song.audio, usual.audio)
    assert other.audio_codes != usual.audio_codes
    assert (other.audio - usual.audio).abs().max() > 0.1


def test_guidance_scale_changes_a_base_model_and_a_turbo_model_says_one(generate: Any) -> None:
    """R106: turbo models are distilled without guidance."""
    base = ("--config-path", "acestep-v15-tiny-base")
    usual, same, other = (
        generate(*scale, models=base) for scale in ((), ("--guidance-scale", "7"), ("--guidance-scale", "3"))
    )
    assert [result.effective.guidance_scale for result in (usual, same, other)] == [7, 7, 3]
    assert torch.equal(usual.songs[0].audio, same.songs[0].audio)
    assert (other.songs[0].audio - usual.songs[0].audio).abs().max() > 0.01
    turbo = [generate("--guidance-scale", scale) for scale in ("7", "3")]
    assert [result.effective.guidance_scale for result in turbo] == [1, 1]
    assert torch.equal(turbo[0].songs[0].audio, turbo[1].songs[0].audio)


@pytest.mark.parametrize(
    ("task", "flag", "line"),
    [
        ("cover", "--thinking", "--thinking has no effect: task cover takes its structure from the recording"),
        ("extract", "--thinking", "--thinking has no effect: task extract takes its structure from the recording"),
        ("repaint", "--use-cot-language", "--use-cot-language has no effect: task repaint takes the text as it is"),
    ],
)
def test_a_flag_that_changes_nothing_is_named(
    task: str, flag: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write("source.wav", np.zeros((48_000, 2), dtype=np.float32), 48_000)
    command = ("--tiny", "--device", "cpu", "--no-warmup", "--inference-steps", "1", "--src-audio", "source.wav")
    for flags, expected in (((), []), ((flag,), [line])):
        assert main([*command, "--task-type", task, *flags]) == 0
        assert [said for said in capsys.readouterr().out.splitlines() if "no effect" in said] == expected


def test_guidance_that_the_model_has_none_of_is_named(generate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    line = "--guidance-scale 3 has no effect: acestep-v15-tiny runs without guidance"
    for scale, shown in (("7", False), ("1", False), ("3", True)):
        generate("--guidance-scale", scale)
        assert (line in capsys.readouterr().out.splitlines()) == shown


def test_an_unused_language_model_is_named(generate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    line = "acestep-5Hz-lm-tiny was not used: --thinking or a --use-cot flag enables the language model"
    named = ("--config-path", "acestep-v15-tiny", "--lm-model", "acestep-5Hz-lm-tiny")
    assert generate(models=named).effective.lm_model is None
    assert line in capsys.readouterr().out.splitlines()
    assert generate("--thinking", models=named).effective.lm_model == "acestep-5Hz-lm-tiny"
    assert line not in capsys.readouterr().out.splitlines()


def test_llm_debug_without_language_model_says_so(generate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    generate("--llm-debug")
    assert "  The language model was not used.\n" in capsys.readouterr().out


def test_llm_debug_has_a_column_per_phase(generate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """R157."""
    generate("--llm-debug", "--thinking", "--use-cot-metas")
    lines = capsys.readouterr().out.splitlines()
    assert "  Phase                                      lm.cot      lm.codes" in lines
    (throughput,) = [line.split() for line in lines if line.startswith("  Tokens/sec")]
    assert all(float(figure) > 0 for figure in throughput[1:])


def _fields(metadata: SongMetadata) -> dict[str, Any]:
    return {name: getattr(metadata, name) for name in SongMetadata.__dataclass_fields__}
