"""Errors of the engine name fields of its API; the command line shows its own options in their place."""

from __future__ import annotations

import re

import pytest

from acestep.errors import BackendUnavailable, CheckpointNotFound, InvalidRequest, PlacementUnavailable
from acestep_otel.profiler.benchmark.matrix import Failure
from acestep_otel.profiler.flags import in_flags, message_of
from tests.services import ROOT


def test_an_error_lists_the_fields_that_it_names() -> None:
    error = BackendUnavailable("`lm_backend` vllm and `offload_to_cpu`: use `lm_backend` pt; see `pip install x`")
    assert error.fields == ("lm_backend", "offload_to_cpu")


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("leave out `quantization`", "leave out --quantization"),
        ("leave out `compile` and `quantization`", "leave out ACESTEP_COMPILE_MODEL and --quantization"),
        ("give it as `lm`, not as `dit`", "give it as --lm-model, not as --config-path"),
        ("`sampling.temperature` 3 is out of range", "--lm-temperature 3 is out of range"),
        ("`seeds` -1 is out of range", "--seed -1 is out of range"),
        ("`peak_dbfs` 1 is out of range", "peak_dbfs 1 is out of range"),
        ("batch_size without quotes stays", "batch_size without quotes stays"),
    ],
)
def test_fields_become_options(message: str, shown: str) -> None:
    assert in_flags(PlacementUnavailable(message)) == shown
    assert in_flags(InvalidRequest(message)) == shown


def test_tables_and_result_files_have_the_same_words() -> None:
    refused = InvalidRequest("`batch_size` 9 is out of range")
    assert Failure.of(refused).message == message_of(refused) == "--batch-size 9 is out of range"
    assert message_of(ValueError("`batch_size`")) == "`batch_size`"


def test_a_missing_model_lists_the_solutions_of_the_command_line() -> None:
    shown = in_flags(CheckpointNotFound("no weights for 'x': looked for x", "To resolve this, set `fetch`", model="x"))
    assert shown.startswith("no weights for 'x': looked for x. To resolve this, set --checkpoint-dir to the folder")
    assert all(
        way in shown
        for way in ("--checkpoint-dir", "`acestep-otel download x`", "--download", "--weights synthetic", "--tiny")
    )
    assert "fetch" not in shown


def test_no_message_of_the_engine_names_an_option() -> None:
    for path in (ROOT / "acestep").rglob("*.py"):
        assert not re.findall(r"(?<![\w-])--[a-z][a-z-]+", path.read_text("utf-8")), path
