"""Exception messages do not carry what the user wrote."""

import pytest

from acestep.errors import InvalidRequest
from acestep_otel.recording.privacy import REDACTED, Scrubber


def test_a_message_that_quotes_the_caption_is_redacted_and_keeps_its_type_and_traceback():
    with pytest.raises(InvalidRequest) as caught:
        raise InvalidRequest("caption 'my secret song' is too long")
    clean = Scrubber(["my secret song"])(caught.value)
    assert str(clean) == f"caption '{REDACTED}' is too long"
    assert type(clean).__name__ == "InvalidRequest"
    assert clean.__traceback__ is caught.value.__traceback__


def test_single_lines_and_escaped_quotations_of_the_lyrics_are_redacted():
    lyrics = "[Verse]\nhello darkness\nmy old friend"
    scrub = Scrubber([lyrics])
    assert "darkness" not in str(scrub(ValueError("at line: hello darkness")))
    assert "friend" not in str(scrub(ValueError("bad lyrics " + repr(lyrics))))


def test_a_message_that_quotes_nothing_is_left_alone():
    error = ValueError("duration 700 s is out of range")
    assert Scrubber(["my secret song", "la", ""])(error) is error
