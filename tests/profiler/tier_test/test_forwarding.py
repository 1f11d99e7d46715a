"""A child's spans in its parent's trace: unchanged, or rebuilt from the journal of a killed child."""

from __future__ import annotations

from contextlib import suppress

import pytest
from opentelemetry.trace import StatusCode

from acestep_otel import semconv
from acestep_otel.profiler.report.spans import FinishedSpan
from acestep_otel.profiler.telemetry.providers import Telemetry
from acestep_otel.profiler.tier_test.forwarding import OpenStages, SpanForwarder
from acestep_otel.profiler.tier_test.journal import StageJournal
from acestep_otel.profiler.tier_test.memory import MemoryWatch
from acestep_otel.profiler.tier_test.protocol import Spans, StageMark
from acestep_otel.recording.call import Call, LoadDefinition, ModelLoad, RequestDefinition, StageDefinition
from acestep_otel.settings import Detail
from tests.receivers import grpc_receiver


def test_a_forwarded_span_is_the_same_in_the_parent() -> None:
    sent: list[Spans] = []
    with Telemetry() as child, Telemetry() as parent:
        child.tracer_provider.add_span_processor(SpanForwarder(sent.append))
        tracer = child.tracer_provider.get_tracer("acestep_otel")
        with suppress(ZeroDivisionError), tracer.start_as_current_span("outer", attributes={"a": 1, "b": True}):
            tracer.start_span("inner", start_time=17).end(end_time=19)
            raise ZeroDivisionError
        parent.adopt(FinishedSpan.from_otlp_json([event.otlp for event in sent]))
        assert [span.name for span in parent.collector.finished_spans] == ["inner", "outer"]
        assert parent.collector.finished_spans == child.collector.finished_spans
        assert parent.collector.readable_spans[1].status.status_code is StatusCode.ERROR


def test_adopted_spans_are_sent_on() -> None:
    sent: list[Spans] = []
    with grpc_receiver() as received:
        with Telemetry() as child, Telemetry(endpoint=received.endpoint) as parent:
            child.tracer_provider.add_span_processor(SpanForwarder(sent.append))
            child.tracer_provider.get_tracer("acestep_otel").start_span("of a child").end()
            parent.adopt(FinishedSpan.from_otlp_json([event.otlp for event in sent]))
        assert received.span_names() == ["of a child"]


def mark(name: str, time_ns: int, *, ended: bool = False) -> StageMark:
    return StageMark(name, ended, time_ns, 0, None)


def rebuilt(*marks: StageMark) -> list[FinishedSpan]:
    stages = OpenStages()
    for found in marks:
        stages.follow(found)
    with Telemetry() as telemetry:
        tracer = telemetry.tracer_provider.get_tracer("acestep_otel")
        with tracer.start_as_current_span(semconv.TIER_PROCESS) as parent:
            stages.trace(tracer, parent, 100)
        return telemetry.collector.finished_spans


def test_stages_of_a_killed_child_are_rebuilt_and_unfinished_ones_are_truncated() -> None:
    spans = rebuilt(
        mark(semconv.GENERATE_MUSIC, 10),
        mark(semconv.CONDITION, 11),
        mark(semconv.CONDITION, 20, ended=True),
        mark(semconv.DIT, 21),
    )
    by_name = {span.name: span for span in spans}
    assert list(by_name) == [semconv.CONDITION, semconv.DIT, semconv.GENERATE_MUSIC, semconv.TIER_PROCESS]
    assert (by_name[semconv.CONDITION].start_ns, by_name[semconv.CONDITION].end_ns) == (11, 20)
    assert (by_name[semconv.DIT].start_ns, by_name[semconv.DIT].end_ns) == (21, 100)
    truncated = {name for name, span in by_name.items() if span.attributes.get(semconv.TRUNCATED)}
    assert truncated == {semconv.DIT, semconv.GENERATE_MUSIC} == {s.name for s in spans if s.status == "error"}
    root = by_name[semconv.GENERATE_MUSIC]
    assert root.parent_id == by_name[semconv.TIER_PROCESS].span_id
    assert by_name[semconv.CONDITION].parent_id == by_name[semconv.DIT].parent_id == root.span_id


def test_completed_requests_use_the_childs_own_spans() -> None:
    spans = rebuilt(mark(semconv.MODEL_LOAD, 1), mark(semconv.MODEL_LOAD, 2, ended=True))
    assert [span.name for span in spans] == [semconv.TIER_PROCESS]


def test_the_innermost_stage_is_the_one_that_runs() -> None:
    stages = OpenStages()
    seen = []
    for found in (
        mark(semconv.GENERATE_MUSIC, 1),
        mark(semconv.DIT, 2),
        mark(semconv.DIT, 3, ended=True),
        mark(semconv.GENERATE_MUSIC, 4, ended=True),
    ):
        stages.follow(found)
        seen.append(stages.innermost)
    assert seen == [semconv.GENERATE_MUSIC, semconv.DIT, semconv.GENERATE_MUSIC, None]


def test_the_journal_reports_the_begin_and_end_of_stages_including_failed_ones() -> None:
    marks: list[StageMark] = []
    journal = StageJournal(marks.append, MemoryWatch(None))
    journal.trial = 3

    def inner() -> str:
        return journal.stage(StageDefinition(semconv.DIT_STEP, Detail.STEP), Call(lambda: "made", None, (), {}))

    def failing() -> None:
        raise ZeroDivisionError

    load = LoadDefinition("renderer", lambda call: ModelLoad("m", None))
    assert journal.load(load, Call(lambda: "loaded", None, (), {})) == "loaded"
    assert journal.stage(StageDefinition(semconv.DIT, tracks_memory=True), Call(inner, None, (), {})) == "made"
    with pytest.raises(ZeroDivisionError):
        journal.request(RequestDefinition(semconv.GENERATE_MUSIC, lambda *_: None), Call(failing, None, (), {}))
    names = (semconv.MODEL_LOAD, semconv.DIT, semconv.GENERATE_MUSIC)
    assert [(found.name, found.ended) for found in marks] == [(name, end) for name in names for end in (False, True)]
    assert {found.trial for found in marks} == {3}
    assert [found.stage for found in journal.intervals] == ["model.load", "dit", "generate_music"]
    assert all(found.start_ns <= found.end_ns for found in journal.intervals)
