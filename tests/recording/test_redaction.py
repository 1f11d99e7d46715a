"""Exception messages and stack traces do not carry what the user wrote."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.errors import InvalidRequest
from acestep_otel.recording.redaction import REDACTED, Scrubber

LYRICS = "[Verse]\nhello darkness\nmy old friend, I have come to talk"


def test_a_message_that_quotes_the_caption_is_redacted():
    scrub = Scrubber(["my secret song"])
    assert scrub("caption 'my secret song' is too long") == f"caption '{REDACTED}' is too long"


@pytest.mark.parametrize(
    "message",
    ["at line: hello darkness", "bad lyrics " + repr(LYRICS), "bad body " + json.dumps({"lyrics": LYRICS})],
    ids=["line", "repr", "json"],
)
def test_lines_and_escaped_quotations_of_the_lyrics_are_redacted(message):
    clean = Scrubber([LYRICS])(message)
    assert "darkness" not in clean
    assert "friend" not in clean


def test_a_quotation_that_was_cut_off_is_redacted():
    assert Scrubber([LYRICS])("lyrics 'my old friend, I have co...' rejected") == f"lyrics '{REDACTED}...' rejected"


@pytest.mark.parametrize(
    ("text", "message", "clean"),
    [
        ("an ode to nightingales", "KeyError: 'nightingales'", f"KeyError: '{REDACTED}'"),
        ("an ode to nightingales", 'no token for "ode"', f'no token for "{REDACTED}"'),
        ("an ode to nightingales", "stage 'dit' in 'od'", "stage 'dit' in 'od'"),
        ("an ode to nightingales", "near de to nightinga", f"near {REDACTED}"),
        ("请你不要离开我的身边", "在 不要离开我 处", f"在 {REDACTED} 处"),
        ("            x", "File            ", "File            "),
    ],
    ids=["a word in quotes", "another", "not a word of it", "a piece", "without blanks", "blanks"],
)
def test_pieces_and_words_in_quotes_are_redacted(text, message, clean):
    assert Scrubber([text])(message) == clean


def test_a_message_that_quotes_nothing_is_unchanged():
    message = "duration 700 s is out of range"
    assert Scrubber(["my secret song", "la", ""])(message) == message
    assert Scrubber([])(message) == message


def test_causes_and_source_lines_in_the_stack_trace_are_redacted():
    def fail():
        try:
            raise ValueError(f"cannot encode {LYRICS}")
        except ValueError as error:
            raise InvalidRequest("the lyrics cannot be read") from error

    with pytest.raises(InvalidRequest) as caught:
        fail()
    event = Scrubber([LYRICS]).event(caught.value)
    assert event["exception.message"] == "the lyrics cannot be read"
    assert "ValueError: cannot encode" in event["exception.stacktrace"]
    assert "darkness" not in event["exception.stacktrace"]


@given(st.text(min_size=4), st.text(), st.text())
def test_no_text_survives_its_own_scrubbing(text, before, after):
    line = text.strip()
    clean = Scrubber([text])(before + text + after)
    if len(line) >= 4 and line not in REDACTED:
        assert not any(line in part for part in clean.split(REDACTED))
