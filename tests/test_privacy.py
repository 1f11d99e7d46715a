"""Other libraries quote what callers sent, in logs and on spans; with telemetry set up here they do not."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest

from acestep_otel.privacy import TraceHeaderLog
from tests.services import INSTRUMENT, ROOT

HEADERS = """
from opentelemetry import propagate
for header in (
    {"baggage": "card=PLANTED 1"},
    {"baggage": "PLANTED"},
    {"baggage": "name=" + "PLANTED" * 10_000},
    {"baggage": "PLANTÉD=1"},
    {"traceparent": "PLANTED"},
    {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "PLANTED=,PLANTED"},
    {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=1,a=PLANTED"},
):
    propagate.extract(header)
"""
# Not spelled out: from 3.13 on, Python shows the source lines of a program that it was given on the command line.
ERRORS = """
word = "PLAN" + "TED"
from opentelemetry import trace
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
kept = InMemorySpanExporter()
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(kept))

def work():
    try:
        raise KeyError(f"{word} cause")
    except KeyError as error:
        raise ValueError(f"cannot read {word}") from error

tracer = trace.get_tracer("framework")
try:
    with tracer.start_as_current_span("outer"):
        with tracer.start_span("inner") as inner:
            work()
except ValueError as error:
    with tracer.start_span("late") as late:
        late.record_exception(error, {"more": 1})
        late.set_status(trace.StatusCode.ERROR, f"it said {error}")
try:
    with tracer.start_as_current_span("careful", record_exception=False):
        work()
except ValueError:
    pass
with tracer.start_span("own words") as own:
    own.set_status(trace.StatusCode.ERROR, "the queue is full")
    own.record_exception(ValueError(word), {"exception.message": "clean", "exception.stacktrace": "clean"})
print("[" + ",".join(span.to_json() for span in kept.get_finished_spans()) + "]")
"""


def run(program: str, *, by_agent: bool, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    nowhere = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")} if by_agent else {}
    set_up = "" if by_agent else "import acestep_otel; acestep_otel.configure()\n"
    return subprocess.run(
        [*([str(INSTRUMENT)] if by_agent else []), sys.executable, "-c", set_up + program],
        cwd=ROOT,
        env={**kept, **nowhere, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("by_agent", [False, True], ids=["configure", "agent"])
def test_headers_that_cannot_be_read_are_one_line_without_their_text(by_agent: bool) -> None:
    done = run(HEADERS, by_agent=by_agent)
    assert (done.returncode, done.stdout) == (0, "")
    assert "PLANT" not in done.stderr
    assert done.stderr == "trace headers of callers that are malformed or too long: 1 since the last such line\n"


def test_the_next_line_comes_after_a_minute_and_has_their_number() -> None:
    moments = iter([0.0, 1.0, 59.9, 60.0])
    log = TraceHeaderLog(lambda: next(moments))
    records = [logging.LogRecord("l", logging.WARNING, "f", 1, "bad %s", ("PLANTED",), None) for _ in range(4)]
    assert [log.filter(record) for record in records] == [True, False, False, True]
    assert [record.getMessage().split(": ")[1] for record in (records[0], records[3])] == [
        "1 since the last such line",
        "3 since the last such line",
    ]


@pytest.mark.parametrize("by_agent", [False, True], ids=["configure", "agent"])
def test_an_exception_on_a_span_has_its_type_and_places_and_no_message(by_agent: bool) -> None:
    done = run(ERRORS, by_agent=by_agent)
    assert (done.returncode, done.stderr) == (0, "")
    spans = {span["name"]: span for span in json.loads(done.stdout)}
    assert all("PLANTED" not in json.dumps(span) for span in spans.values())
    for name, description in [
        ("outer", "ValueError: [redacted]"),
        ("inner", "ValueError: [redacted]"),
        ("late", "it said [redacted]"),
        ("careful", "ValueError: [redacted]"),
        ("own words", "the queue is full"),
    ]:
        assert spans[name]["status"]["description"] == description
    (event,) = spans["late"]["events"]
    assert event["attributes"]["exception.type"] == "ValueError"
    assert event["attributes"]["exception.message"] == "[redacted]"
    assert event["attributes"]["more"] == 1
    stack = event["attributes"]["exception.stacktrace"]
    assert stack.index("KeyError: [redacted]") < stack.index("ValueError: [redacted]")
    assert "in work" in stack
    assert spans["own words"]["events"][0]["attributes"]["exception.message"] == "clean"


def test_messages_stay_where_content_may_be_captured() -> None:
    done = run(ERRORS, by_agent=False, OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT="SPAN_ONLY")
    assert "cannot read PLANTED" in done.stdout
