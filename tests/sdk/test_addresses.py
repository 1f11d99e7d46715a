"""Every address that a user can give goes through one parser; user information is used and never shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep_otel.errors import SetupError
from acestep_otel.sdk.addresses import Address, parse_address, without_credentials

EXAMPLE = "http://localhost:4317"


def parsed(text: str, *, needs_scheme: bool = True) -> Address:
    return parse_address(text, "--otlp-endpoint", example=EXAMPLE, needs_scheme=needs_scheme)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://localhost:4317", Address("http", "localhost", 4317)),
        ("HTTPS://Collector.Example", Address("https", "collector.example")),
        ("http://[::1]:4317", Address("http", "::1", 4317)),
        ("http://otel_collector:4318/otlp", Address("http", "otel_collector", 4318, "/otlp")),
        ("http://h:1/v1/traces?token=s3cret", Address("http", "h", 1, "/v1/traces", query="token=s3cret")),
        ("http://me:p%40ss@h:1", Address("http", "h", 1, credentials=("me", "p@ss"))),
    ],
)
def test_parts_of_an_address(text: str, address: Address) -> None:
    assert parsed(text) == address


def test_a_scheme_may_be_left_out_where_that_is_legal() -> None:
    assert parsed("localhost:4317", needs_scheme=False) == Address(None, "localhost", 4317)
    assert parsed("[::1]:4317", needs_scheme=False) == Address(None, "::1", 4317)


@pytest.mark.parametrize(
    "text",
    [
        "", "localhost:4317", "not a url at all", "file:///etc/passwd", "http://", "http://:4317", "http://localhost:99999",
        "http://localhost:0", "http://localhost:http", "http://h:-1", "http://[::1", "http://[nonsense]:1",
        "http://a b:1", "http://h:1#part", "http://-h", "http://h..example", "http://h:1\n", "http://" + "a" * 3_000,
        "http://::1:4317",
    ],
)  # fmt: skip
def test_what_is_no_address_is_one_line_that_names_the_setting(text: str) -> None:
    with pytest.raises(SetupError, match=r"^--otlp-endpoint ") as refusal:
        parsed(text)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 2_300


@pytest.mark.parametrize(
    "text",
    [
        "http://user:PLANTED@h:99999", "http://user:PLANTED@a b", "user:PLANTED@h", "http://user:PL@NTED/PLANTED@",
        "http://user:PLANTED@h#x", "http://PLANTED@[::1", "http:/user:PLANTED@h:1", "http://h:0?key=PLANTED",
    ],
)  # fmt: skip
def test_no_message_contains_a_password(text: str) -> None:
    with pytest.raises(SetupError) as refusal:
        parsed(text)
    assert "PLANTED" not in str(refusal.value)


def test_no_displayed_form_of_an_address_contains_a_password() -> None:
    address = parsed("http://PLANTED:PLANTED@h:1/x?PLANTED")
    assert str(address) == "http://h:1/x"
    assert "PLANTED" not in repr(address)
    assert "PLANTED" not in without_credentials("http://PLANTED:PLANTED@h:1/x?PLANTED")


def test_an_ipv6_address_is_shown_in_brackets() -> None:
    assert str(parsed("http://[::1]:4317")) == "http://[::1]:4317"
    assert parsed("http://[::1]").authority == "[::1]"


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_one_error(text: str) -> None:
    for prefix in ("", "http://", "https://["):
        shown = _shown(prefix + text)
        assert shown.isprintable()


def _shown(text: str) -> str:
    try:
        return str(parsed(text, needs_scheme=False))
    except SetupError as refusal:
        return str(refusal)
