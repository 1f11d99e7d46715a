"""Messages between parent and child arrive unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.gpu_config import gpu_config
from acestep_otel.profiler.benchmark.matrix import Failure
from acestep_otel.profiler.options import Options
from acestep_otel.profiler.tier_test.plan import Plan
from acestep_otel.profiler.tier_test.protocol import (
    Event,
    Finished,
    Refused,
    Spans,
    StageMark,
    Started,
    decode,
    decode_job,
    encode,
    encode_job,
)
from acestep_otel.profiler.tier_test.verdict import config_facts
from tests.profiler.report.gpu_run import ENVIRONMENT
from tests.profiler.tier_test.tier_rows import observation, trial

FAILURE = Failure("OutOfMemory", "no room\nfor 3 GiB", "dit")


@pytest.mark.parametrize(
    "event",
    [
        Started("cuda:0", config_facts(gpu_config(4)), ENVIRONMENT),
        Refused(FAILURE),
        StageMark("acestep.dit", True, 17, 0, None),
        StageMark("acestep.dit", False, 17, 3, 2**33),
        Spans('{"resourceSpans": []}\n'),
        Finished(0, None, False, observation(trial(8, lm_model="acestep-5Hz-lm-0.6B"), 3.0)),
        Finished(2, FAILURE, True, observation(trial(8), 3.0)),
    ],
)
def test_an_event_is_one_line_and_comes_back(event: Event) -> None:
    line = encode(event)
    assert "\n" not in line
    assert decode(line) == event


@given(st.text())
def test_anything_else_is_no_event(line: str) -> None:
    with pytest.raises(ValueError, match="not an event of a child process"):
        decode(line)


@pytest.mark.parametrize("line", ["{}", '{"event": "Started"}', '{"event": "Spans", "other": 1}', "[]", "1"])
def test_json_of_another_form_is_no_event(line: str) -> None:
    with pytest.raises(ValueError, match="not an event of a child process"):
        decode(line)


def test_a_job_comes_back_with_its_paths_and_tuples() -> None:
    options = Options(mode="tier-test", report=Path("a/b.html"), tiers=(8,), tier_with_lm=True, track=("drums",))
    (job,) = Plan.of(options, 8).jobs
    assert "\n" not in encode_job(job)
    assert decode_job(encode_job(job)) == job
