"""The one reader of JSON: limits on size, depth and digits, finite numbers, whole texts, regular files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.documents import DocumentError, parse_document, read_document, shown


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[" * 200_000, "is nested deeper than 64 levels"),
        (b"[" * 65 + b"1" + b"]" * 65, "is nested deeper than 64 levels"),
        (b'{"seed": ' + b"9" * 6_000 + b"}", "a number of 6,000 digits"),
        (b'{"seconds": 1e400}', "the number 1e400 is out of range"),
        (b"[NaN]", "NaN is not a JSON number"),
        (b"[-Infinity]", "-Infinity is not a JSON number"),
        (b'["\\ud800"]', "contains a string with a lone surrogate"),
        (b'{"\\udfff": 1}', "contains a string with a lone surrogate"),
        (b"", "line 1, column 1"),
        (b"{", "line 1, column 2"),
        ("{}".encode("utf-16"), "is not UTF-8 text (byte 0)"),
        (b'"\xff"', "is not UTF-8 text (byte 1)"),
    ],
)
def test_what_is_no_document_is_one_line_with_its_name(content: bytes, problem: str) -> None:
    with pytest.raises(DocumentError, match=r"^it") as refusal:
        parse_document(content, "it")
    assert problem in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_byte_order_mark_is_passed_over() -> None:
    assert parse_document("\ufeff{}".encode(), "it") == {}


def test_a_size_is_a_limit() -> None:
    with pytest.raises(DocumentError, match="it has more than 10 bytes"):
        parse_document(b" " * 11, "it", largest=10)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, problem in (("pipe", "is not a regular file"), ("none", "there is no file"), (".", "cannot read")):
        with pytest.raises(DocumentError, match=problem):
            read_document(tmp_path / name)
    (tmp_path / "large").write_bytes(b" " * 100)
    with pytest.raises(DocumentError, match="large has 100 bytes: 50 are read at most"):
        read_document(tmp_path / "large", largest=50)
    with pytest.raises(DocumentError, match="cannot read"):
        read_document(tmp_path / ("x" * 300))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=5)
    | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=5),
    max_leaves=30,
)  # fmt: skip


@given(JSON)
def test_every_document_of_json_is_read_as_it_was_written(value: object) -> None:
    assert parse_document(json.dumps(value).encode(), "it") == value


@given(st.binary(max_size=200))
def test_any_bytes_are_a_document_or_one_error(content: bytes) -> None:
    try:
        parse_document(content, "it")
    except DocumentError as refusal:
        said = str(refusal)
    else:
        said = ""
    assert "\n" not in said


@given(st.text())
def test_a_name_that_is_shown_can_be_printed(name: str) -> None:
    assert shown(name).isprintable()
    shown(name).encode()
