"""Exception messages do not carry what the user wrote."""

from acestep.errors import InvalidRequest
from acestep_otel.recording.privacy import REDACTED, Scrubber


def test_a_message_that_quotes_the_caption_is_redacted_and_keeps_its_type_and_traceback():
    try:
        raise InvalidRequest("caption 'my secret song' is too long")
    except InvalidRequest as error:
        clean = Scrubber(["my secret song"])(error)
        assert str(clean) == f"caption '{REDACTED}' is too long"
        assert type(clean).__name__ == "InvalidRequest"
        assert clean.__traceback__ is error.__traceback__


def test_single_lines_and_escaped_quotations_of_the_lyrics_are_redacted():
    lyrics = "[Verse]\nhello darkness\nmy old friend"
    scrub = Scrubber([lyrics])
    assert "darkness" not in str(scrub(ValueError("at line: hello darkness")))
    assert "friend" not in str(scrub(ValueError("bad lyrics " + repr(lyrics))))


def test_a_message_that_quotes_nothing_is_left_alone():
    error = ValueError("duration 700 s is out of range")
    assert Scrubber(["my secret song", "la", ""])(error) is error
