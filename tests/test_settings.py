"""The table of settings: every word, the defaults, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.environment_variables import CUDA_MEMORY, MPS_MEMORY
from acestep_otel.profiler.dotenv import VARIABLES
from acestep_otel.settings import CAPTURE_VARIABLE, DETAIL_VARIABLE, Detail, Settings

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "settings.md"


def test_the_one_table_has_every_variable_with_its_flag() -> None:
    rows = [line.split(" | ") for line in DOCUMENT.read_text("utf-8").splitlines() if line.startswith("| `")]
    in_file = {row[0].strip("| `"): row[1] == "yes" for row in rows}
    assert {name for name, read in in_file.items() if read} == set(VARIABLES.values())
    assert {DETAIL_VARIABLE, CAPTURE_VARIABLE, CUDA_MEMORY, MPS_MEMORY} <= set(in_file)
    flags = {row[0].strip("| `"): row[3].strip("` ") for row in rows}
    for option, variable in VARIABLES.items():
        assert flags[variable] == f"--{option.replace('_', '-')}"


def test_defaults() -> None:
    assert Settings.from_environment({}) == Settings(detail=Detail.STEP, capture_content=False)


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DETAIL_VARIABLE, "token")
    monkeypatch.setenv(CAPTURE_VARIABLE, "SPAN_ONLY")
    assert Settings.from_environment() == Settings(detail=Detail.TOKEN, capture_content=True)


@pytest.mark.parametrize("word", ["off", "stage", "step", "token", "STEP", " step ", "Token"])
def test_levels_are_read_in_any_case(word: str) -> None:
    assert Settings.from_environment({DETAIL_VARIABLE: word}).detail.name == word.strip().upper()


def test_each_level_includes_the_ones_before_it() -> None:
    assert Detail.OFF < Detail.STAGE < Detail.STEP < Detail.TOKEN


@pytest.mark.parametrize("variable", [DETAIL_VARIABLE, CAPTURE_VARIABLE])
def test_an_empty_variable_counts_as_absent(variable: str) -> None:
    assert Settings.from_environment({variable: ""}) == Settings()


@pytest.mark.parametrize(
    ("word", "captured"),
    [("NO_CONTENT", False), ("SPAN_ONLY", True), ("span_and_event", True), ("EVENT_ONLY", False), ("true", True)],
)
def test_content_is_captured_only_after_opt_in(word: str, captured: bool) -> None:
    assert Settings.from_environment({CAPTURE_VARIABLE: word}).capture_content is captured


@given(st.text(min_size=1).filter(lambda word: word.strip().upper() not in Detail.__members__ and word.strip()))
def test_any_other_word_is_refused_by_name(word: str) -> None:
    with pytest.raises(ValueError, match=DETAIL_VARIABLE):
        Settings.from_environment({DETAIL_VARIABLE: word})


def test_an_unknown_capture_word_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=CAPTURE_VARIABLE):
        Settings.from_environment({CAPTURE_VARIABLE: "some"})
