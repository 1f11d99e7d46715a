"""A trial passes only if it ran as requested within the limit (R62 ... R66, R79)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.gpu_config import gpu_config
from acestep.memory_cap import MemoryCap
from acestep_otel.profiler.benchmark.matrix import Failure
from acestep_otel.profiler.children.processes import Ending
from acestep_otel.profiler.tier_test.protocol import Finished
from acestep_otel.profiler.tier_test.trials import GIB, Observation, TierResult, Trial
from acestep_otel.profiler.tier_test.verdict import config_facts, ended, judge, skipped
from tests.profiler.tier_test.tier_rows import effective, memory_use, observation, trial

LM = "acestep-5Hz-lm-0.6B"


def verdict(asked: Trial | None = None, seen: Observation | None = None, **fields: Any) -> TierResult:
    asked = trial(8, lm_model=LM) if asked is None else asked
    finished = Finished(0, None, False, observation(asked, 3.0) if seen is None else seen)
    return judge(asked, config_facts(gpu_config(asked.memory)), replace(finished, **fields))


def error_of(result: TierResult) -> tuple[str, str]:
    assert result.failure is not None
    return result.failure.type, result.failure.message


def test_everything_as_asked_passes() -> None:
    assert verdict().status == "ok"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"songs": 2}, "WrongBatch"),
        ({"songs": 0, "durations": ()}, "WrongBatch"),
        ({"durations": (29.5,)}, "WrongDuration"),
        ({"finite": False}, "InvalidOutput"),
        ({"quietest": 1e-5}, "SilentOutput"),
        ({"thought": 0}, "WrongSettings"),
    ],
)
def test_other_audio_than_asked_for_fails(change: dict[str, Any], error: str) -> None:
    """R64: no silent cut of the batch or of the duration."""
    seen = observation(trial(8, lm_model=LM), 3.0)
    assert seen.audio is not None
    result = verdict(seen=replace(seen, audio=replace(seen.audio, **change)))
    assert (result.status, error_of(result)[0]) == ("failed", error)


@pytest.mark.parametrize(
    "change",
    [
        {"lm_model": None},
        {"steps": 4},
        {"placement": {"offload_to_cpu": False, "offload_dit_to_cpu": False, "quantization": None, "compile": False}},
    ],
)
def test_other_settings_than_asked_for_fail(change: dict[str, Any]) -> None:
    asked = trial(8, lm_model=LM)
    seen = observation(asked, 3.0)
    result = verdict(asked, replace(seen, run={**(seen.run or {}), "effective_settings": effective(asked, **change)}))
    assert error_of(result)[0] == "WrongSettings"
    assert next(iter(change)) in error_of(result)[1]


@pytest.mark.parametrize("name", ["tier", "recommended_lm", "int8"])
def test_another_tier_than_expected_fails(name: str) -> None:
    """R62."""
    asked = trial(8)
    facts = {**config_facts(gpu_config(8)), name: "another"}
    result = judge(asked, facts, Finished(0, None, False, observation(asked, 3.0)))
    assert error_of(result)[0] == "WrongTier"
    assert f"8 GB: {name} is 'another'" in error_of(result)[1]


@given(st.integers(0, 10 * GIB), st.integers(0, 10 * GIB), st.integers(0, 2 * GIB))
def test_a_peak_above_the_limit_fails_from_either_source(driver: int, reserved: int, context: int) -> None:
    """R66: the driver, or the allocator together with the context."""
    asked = trial(8)
    memory = memory_use(1.0, driver=driver, reserved=reserved, context=context)
    result = verdict(asked, replace(observation(asked, 1.0), memory=memory))
    over = driver > 8 * GIB or reserved + context > 8 * GIB
    assert result.passed == (not over)
    if over:
        assert error_of(result)[0] == "LimitExceeded"


def test_a_capped_run_without_a_memory_reading_fails() -> None:
    seen = replace(observation(trial(8, lm_model=LM), 3.0), memory=None)
    assert error_of(verdict(seen=seen)) == ("LimitExceeded", "an unknown peak on a card of 8 GiB")


def test_without_a_cap_there_is_no_limit_and_the_row_says_so() -> None:
    asked = trial(24)
    seen = replace(observation(asked, 30.0), cap=MemoryCap.of(24, 16 * GIB))
    result = verdict(asked, seen)
    assert result.passed
    assert "cap not enforced: the card is no larger" in result.notes


def test_off_cuda_nothing_is_offloaded_or_quantised_and_no_cap_enforced() -> None:
    asked = trial(8)
    bare = effective(
        asked, placement=effective(trial(8, placement=trial(24).placement))["placement"] | {"compile": False}
    )
    seen = replace(observation(asked, 3.0), device="cpu", cap=None, memory=None)
    result = verdict(asked, replace(seen, run={**(seen.run or {}), "effective_settings": bare}))
    assert result.passed
    assert result.notes == ("cap not enforced: cpu has none",)


def test_what_the_engine_raised_is_the_failure() -> None:
    """R63, R64."""
    failure = Failure("OutOfMemory", "no room", "dit")
    asked = trial(8)
    seen = Observation("cuda", MemoryCap.of(8, 80 * GIB), initialised=False)
    assert verdict(asked, seen, failure=failure, out_of_memory=True).status == "out_of_memory"
    result = verdict(asked, seen, failure=failure)
    assert (result.status, result.failure) == ("failed", failure)
    assert result.to_json()["init_success"] is False


def test_a_run_without_a_song_fails() -> None:
    asked = trial(8)
    assert error_of(verdict(asked, replace(observation(asked, 3.0), audio=None)))[0] == "NoSong"


def decoded(rung: str, tiles: int, length: int) -> dict[str, Any]:
    return {"vae_decode": {"rung": rung, "tiles": tiles, "tile_length": length, "overlap": 9, "attempts": 1}}


@pytest.mark.parametrize(
    ("memory", "lm", "change", "notes"),
    [
        (4, None, decoded("cpu", 1, 750), ["VAE decoded on CPU", "offload enabled (with DiT)", "int8_weight_only"]),
        (6, None, decoded("gpu", 4, 256), ["Tiled VAE chunk=256", "offload enabled (with DiT)", "int8_weight_only"]),
        (8, LM, decoded("gpu", 1, 750), ["pt backend", "offload enabled (with DiT)", "int8_weight_only"]),
        (
            8,
            None,
            decoded("gpu+cpu buffer", 14, 64),
            ["Tiled VAE chunk=64, audio buffered on CPU", "offload enabled (with DiT)", "int8_weight_only"],
        ),
        (16, LM, {}, ["pt backend", "offload enabled", "int8_weight_only"]),
        (20, LM, {}, ["pt backend", "no offload", "full models on GPU"]),
        (24, None, {}, ["no offload", "full models on GPU"]),
    ],
)
def test_notes_say_what_happened(memory: int, lm: str | None, change: dict[str, Any], notes: list[str]) -> None:
    """R65, R79: every rung of the VAE's ladder, the backend, the placement."""
    asked = trial(memory, lm_model=lm)
    seen = observation(asked, 3.0)
    result = verdict(asked, replace(seen, run={**(seen.run or {}), "effective_settings": effective(asked, **change)}))
    assert result.passed
    assert list(result.notes) == [*notes, "compiled"]


def test_a_note_says_that_a_model_is_tried_where_it_is_not_supported() -> None:
    asked = trial(8, supported=False)
    assert "XL models are not supported on tier4" in verdict(asked, observation(asked, 3.0)).notes


@pytest.mark.parametrize(
    ("ending", "status", "error", "message"),
    [
        (Ending(-9, True, 600), "timeout", "Timeout", "no result within 600 s: see --tier-timeout"),
        (Ending(-9, False, 600), "killed", "Killed", "killed by SIGKILL: the host ran out of memory"),
        (Ending(-11, False, 600), "killed", "Killed", "killed by SIGSEGV"),
        (Ending(1, False, 600, ("a\n", "ValueError: b\n", "\n")), "failed", "Crashed", "exit code 1: ValueError: b"),
        (Ending(0, False, 600), "failed", "Crashed", "ended with exit code 0"),
    ],
)
def test_how_a_process_ended_is_the_row(ending: Ending, status: str, error: str, message: str) -> None:
    result = ended(trial(8), ending, "dit")
    assert (result.status, result.exit_code) == (status, ending.exit_code)
    assert error_of(result)[0] == error
    assert message in error_of(result)[1]
    assert result.failure is not None
    assert result.failure.stage == "dit"


def test_a_skipped_row_has_its_reason() -> None:
    assert error_of(skipped(trial(8), "no need")) == ("Skipped", "no need")
