"""Finished spans read the same from the SDK and from a trace file."""

from __future__ import annotations

import io
import json

import pytest
from opentelemetry.exporter.otlp.json.file import FileSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Status, StatusCode

from acestep_otel import semconv
from acestep_otel.profiler.report.spans import FinishedSpan, measured_runs, runs
from tests.profiler.report.recorded import guide_spans, run_of, span


@pytest.fixture
def readable_spans() -> list[ReadableSpan]:
    memory = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span(semconv.GENERATE_MUSIC) as root:
        root.set_attribute(semconv.THINKING, True)
        root.set_attribute(semconv.BATCH_SIZE, 2)
        root.set_attribute(semconv.DTYPE, "bfloat16")
        root.set_attribute("list", [1.5, 2.5])
        failed = tracer.start_span(semconv.DIT, attributes={semconv.ERROR_TYPE: "OutOfMemory"})
        failed.record_exception(MemoryError("no room"))
        failed.set_status(Status(StatusCode.ERROR, "OutOfMemory"))
        failed.end()
    return list(memory.get_finished_spans())


def test_a_readable_span_keeps_everything(readable_spans: list[ReadableSpan]) -> None:
    failed, root = map(FinishedSpan.from_readable_span, readable_spans)
    assert (root.name, root.parent_id, root.status, root.error) == (semconv.GENERATE_MUSIC, None, "ok", None)
    assert root.attributes == {
        semconv.THINKING: True,
        semconv.BATCH_SIZE: 2,
        semconv.DTYPE: "bfloat16",
        "list": (1.5, 2.5),
    }
    assert (failed.parent_id, failed.trace_id) == (root.span_id, root.trace_id)
    assert (failed.status, failed.error) == ("error", "OutOfMemory")
    assert [event.name for event in failed.events] == ["exception"]
    assert failed.events[0].attributes["exception.message"] == "no room"
    assert root.start_ns <= failed.start_ns <= failed.end_ns <= root.end_ns
    assert root.seconds == (root.end_ns - root.start_ns) / 1e9


def test_a_trace_file_gives_the_same_spans(readable_spans: list[ReadableSpan]) -> None:
    stream = io.StringIO()
    FileSpanExporter(stream=stream).export(readable_spans)
    from_file = list(FinishedSpan.from_otlp_json(stream.getvalue().splitlines()))
    live = [FinishedSpan.from_readable_span(readable) for readable in readable_spans]
    # Tuples come back as lists, JSON has only those.
    assert json.loads(json.dumps([dict(span.attributes) for span in live])) == [span.attributes for span in from_file]
    assert [(s.name, s.span_id, s.parent_id, s.trace_id, s.start_ns, s.end_ns, s.status, s.error) for s in live] == [
        (s.name, s.span_id, s.parent_id, s.trace_id, s.start_ns, s.end_ns, s.status, s.error) for s in from_file
    ]
    assert [[event.name for event in s.events] for s in live] == [[event.name for event in s.events] for s in from_file]


def test_a_span_that_has_not_ended_is_refused() -> None:
    open_span = TracerProvider(shutdown_on_exit=False).get_tracer("test").start_span("open")
    assert isinstance(open_span, ReadableSpan)
    with pytest.raises(ValueError, match="'open' has not ended"):
        FinishedSpan.from_readable_span(open_span)


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "[" * 200_000, '{"spans": []}', '{"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "x"}]}]}]}'],
)
def test_a_line_that_is_no_trace_is_named_by_number(line: str) -> None:
    with pytest.raises(ValueError, match="line 2 is not an OTLP trace request"):
        list(FinishedSpan.from_otlp_json(['{"resourceSpans": []}', line]))


def test_an_empty_line_is_passed_over() -> None:
    assert list(FinishedSpan.from_otlp_json(["", "\n"])) == []


def test_a_run_is_its_root_and_everything_below_it_in_order() -> None:
    spans = guide_spans()
    other = span(semconv.GENERATE_MUSIC, 100, 1)
    first, second = runs([other, *reversed(spans)])
    assert first.root is spans[0]
    assert {found.span_id for found in first.spans} == {found.span_id for found in spans[1:]}
    assert [found.start_ns for found in first.spans] == sorted(found.start_ns for found in first.spans)
    assert second == run_of([other])


def test_a_run_below_a_span_of_the_application_is_found() -> None:
    application = span("GET /song", 0, 10)
    root = span(semconv.GENERATE_MUSIC, 1, 5, application)
    stage = span(semconv.DIT, 2, 1, root)
    assert run_of([application, root, stage]).spans == (stage,)


def test_a_warm_up_is_not_measured() -> None:
    warm_up = span(semconv.GENERATE_MUSIC, 0, 5, attributes={semconv.WARMUP: True})
    measured = span(semconv.GENERATE_MUSIC, 6, 1)
    assert [run.root for run in measured_runs([warm_up, measured])] == [measured]
