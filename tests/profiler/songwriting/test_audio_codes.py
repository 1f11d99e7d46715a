"""Audio codes on the command line (R49)."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep_otel.errors import SetupError
from acestep_otel.profiler.language_model_modes import parse_audio_codes

codes = st.lists(st.integers(0, 63_999), min_size=1)
spaces = st.sampled_from(["", " ", "\n", "  \t"])


@given(codes, spaces)
def test_tokens_are_read_in_order(numbers: list[int], space: str) -> None:
    text = space.join(f"<|audio_code_{number}|>" for number in numbers)
    assert parse_audio_codes(f"{space}{text}{space}") == tuple(numbers)


@given(codes, spaces)
def test_numbers_are_read_in_order(numbers: list[int], space: str) -> None:
    assert parse_audio_codes(f",{space}".join(map(str, numbers))) == tuple(numbers)


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_nothing_is_no_codes(text: str) -> None:
    assert parse_audio_codes(text) == ()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("1,two,3", "'two'"),
        ("1,2,", "''"),
        ("1 2", "'1 2'"),
        ("-5", "'-5'"),
        ("1.5", "'1.5'"),
        ("<|audio_code_1|>,<|audio_code_2|>", "'<|audio_code_1|>'"),
        ("<|audio_code_-1|>", "'<|audio_code_-1|>'"),
        ("your_audio_codes_string", "'your_audio_codes_string'"),
    ],
)
def test_what_is_no_code_is_named_with_the_way_out(text: str, named: str) -> None:
    with pytest.raises(SetupError, match=rf"{re.escape(named)} is not an audio code: write '<\|audio_code_12\|>"):
        parse_audio_codes(text)
