"""The SDK set-up: delivery to real receivers, bounded exit, and silence when nothing is configured."""

from __future__ import annotations

import logging
import platform
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from acestep_otel import semconv
from acestep_otel.profiler.report.spans import FinishedSpan
from acestep_otel.profiler.telemetry.providers import SHUTDOWN_SECONDS, Telemetry
from tests.receivers import (
    Received,
    answering,
    collector,
    grpc_answering,
    grpc_receiver,
    http_receiver,
    refusing_endpoint,
    silent_endpoint,
)

MARGIN_SECONDS = 3.0
"""What a busy machine may add to a bound."""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)


def emit(telemetry: Telemetry, spans: int = 3) -> None:
    tracer = telemetry.tracer_provider.get_tracer("test")
    for _ in range(spans):
        tracer.start_span(semconv.DIT_STEP).end()
    telemetry.meter_provider.get_meter("test").create_counter("acestep.requests").add(1)


def test_the_collector_keeps_finished_spans() -> None:
    with Telemetry() as telemetry:
        emit(telemetry)
        assert [span.name for span in telemetry.collector.finished_spans] == [semconv.DIT_STEP] * 3


def test_nothing_configured_starts_no_thread_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    threads = threading.active_count()
    with Telemetry() as telemetry:
        emit(telemetry)
        assert threading.active_count() == threads
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("receiver", "protocol"), [(grpc_receiver, "grpc"), (http_receiver, "http/protobuf")])
def test_spans_and_metrics_reach_a_receiver(
    receiver: Callable[[], AbstractContextManager[Received]], protocol: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with receiver() as received:
        with Telemetry(endpoint=received.endpoint, protocol=protocol) as telemetry:
            emit(telemetry)
        assert received.span_names() == [semconv.DIT_STEP] * 3
        assert received.metric_names() == ["acestep.requests"]
        # Read before the receiver stops: gRPC itself may log that the connection went away.
        assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("receiver", "protocol"), [(grpc_receiver, "grpc"), (http_receiver, "http/protobuf")])
def test_the_standard_variables_are_enough(
    receiver: Callable[[], AbstractContextManager[Received]], protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiver() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        with Telemetry() as telemetry:
            emit(telemetry)
        assert received.span_names() == [semconv.DIT_STEP] * 3
        assert received.metric_names() == ["acestep.requests"]


def test_a_process_is_an_instance_of_its_host_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    def resource() -> dict[str, str]:
        return dict(Telemetry().tracer_provider.resource.attributes)

    first, second = resource(), resource()
    assert first.pop("service.instance.id") != second.pop("service.instance.id")
    assert first == second
    assert first["host.name"] == platform.node()
    assert first["service.name"] == "acestep-otel"
    assert first["service.version"]
    monkeypatch.setenv("OTEL_SERVICE_NAME", "studio")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=a7,deployment.environment.name=test")
    changed = resource()
    assert (changed["service.name"], changed["service.instance.id"]) == ("studio", "a7")
    assert changed["deployment.environment.name"] == "test"


@pytest.fixture
def rotel() -> Iterator[tuple[Received, str, str]]:
    """A rotel collector that forwards to a receiver: the receiver, and the collector's two endpoints."""
    with grpc_receiver() as received, collector(received.endpoint) as (grpc_endpoint, http_endpoint):
        yield received, grpc_endpoint, http_endpoint


def test_spans_pass_through_a_collector(rotel: tuple[Received, str, str]) -> None:
    received, grpc_endpoint, http_endpoint = rotel
    with Telemetry(endpoint=grpc_endpoint, protocol="grpc") as telemetry:
        emit(telemetry, 2)
    with Telemetry(endpoint=http_endpoint, protocol="http/protobuf") as telemetry:
        emit(telemetry, 1)
    assert received.wait_for_spans(3, seconds=15) == [semconv.DIT_STEP] * 3
    assert received.resource()["service.name"] == "acestep-otel"


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("endpoint", [refusing_endpoint, silent_endpoint])
def test_exit_is_bounded_without_a_receiver(endpoint: Callable[[], AbstractContextManager[str]], protocol: str) -> None:
    """A whole process: threads that outlive their bound would show as a late exit."""
    program = (
        "import sys, time\n"
        "from acestep_otel.profiler.telemetry.providers import Telemetry\n"
        "with Telemetry(endpoint=sys.argv[1], protocol=sys.argv[2]) as telemetry:\n"
        "    tracer = telemetry.tracer_provider.get_tracer('test')\n"
        "    for _ in range(2000): tracer.start_span('span').end()\n"
        "    telemetry.meter_provider.get_meter('test').create_counter('counter').add(1)\n"
        "    print(time.time(), flush=True)\n"
    )
    with endpoint() as url:
        done = subprocess.run(
            [sys.executable, "-c", program, url, protocol], capture_output=True, text=True, timeout=60, check=True
        )
        seconds = time.time() - float(done.stdout)
    assert seconds < SHUTDOWN_SECONDS + MARGIN_SECONDS
    assert done.stderr.startswith("warning: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_open_spans_are_ended_and_marked() -> None:
    telemetry = Telemetry()
    with telemetry:
        tracer = telemetry.tracer_provider.get_tracer("test")
        with tracer.start_as_current_span(semconv.GENERATE_MUSIC):
            tracer.start_span(semconv.DIT)
            tracer.start_span(semconv.CONDITION).end()
            telemetry.shutdown()
    found = {span.name: span.attributes.get(semconv.TRUNCATED) for span in telemetry.collector.finished_spans}
    assert found == {semconv.CONDITION: None, semconv.DIT: True, semconv.GENERATE_MUSIC: True}


def test_the_trace_file_contains_every_span_and_replaces_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    for _ in range(2):
        with Telemetry(trace_output=path) as telemetry:
            emit(telemetry)
            telemetry.write_trace_file()
    with path.open(encoding="utf-8") as lines:
        assert [span.name for span in FinishedSpan.from_otlp_json(lines)] == [semconv.DIT_STEP] * 3


def test_a_run_that_is_stopped_still_writes_its_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"

    def stopped() -> None:
        with Telemetry(trace_output=path) as telemetry:
            telemetry.tracer_provider.get_tracer("test").start_span(semconv.GENERATE_MUSIC)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    with path.open(encoding="utf-8") as lines:
        (span,) = FinishedSpan.from_otlp_json(lines)
    assert span.attributes == {semconv.TRUNCATED: True}


def test_the_sdk_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    threads = threading.active_count()
    with Telemetry() as telemetry:
        emit(telemetry)
        assert threading.active_count() == threads
    assert telemetry.disabled
    assert telemetry.collector.finished_spans == []


def test_the_log_of_the_sdk_is_given_back(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("opentelemetry")
    before = (logger.propagate, list(logger.handlers))
    with Telemetry():
        logging.getLogger("opentelemetry.sdk.metrics").error("first\nfailure")
        logging.getLogger("opentelemetry.sdk.metrics").error("second failure")
    assert (logger.propagate, logger.handlers) == before
    assert capfd.readouterr().err == "warning: first failure\n"


def test_what_was_lost_is_counted_and_is_the_last_line(capfd: pytest.CaptureFixture[str]) -> None:
    """N15: a refusal that the exporter would try again is over with the run."""
    with answering(503) as endpoint, Telemetry(endpoint=endpoint, protocol="http/protobuf") as telemetry:
        emit(telemetry)
    said = capfd.readouterr().err
    assert said.startswith(
        f"warning: telemetry was lost: 3 of 3 spans for {endpoint}/v1/traces (503 Service Unavailable); "
    )
    # On a busy machine the exit's five seconds can end before the second refusal.
    assert said.endswith(
        (
            f"1 of 1 last data points for {endpoint}/v1/metrics (503 Service Unavailable)\n",
            f"all metrics for {endpoint}/v1/metrics (not delivered in time)\n",
        )
    )


def test_rejected_spans_are_counted_and_reported(capfd: pytest.CaptureFixture[str]) -> None:
    """N3."""
    with grpc_answering(rejected=2, words="too old") as endpoint, Telemetry(endpoint=endpoint) as telemetry:
        emit(telemetry)
    lines = capfd.readouterr().err.splitlines()
    assert f"warning: telemetry was lost: 2 of 3 spans for {endpoint} (OK: too old)" in lines


def test_an_html_page_in_place_of_a_receiver_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    with (
        answering(body=b"<html>", content_type="text/html") as endpoint,
        Telemetry(endpoint=endpoint, protocol="http/protobuf") as telemetry,
    ):
        emit(telemetry)
    assert "3 of 3 spans" in (said := capfd.readouterr().err)
    assert "not as an OTLP receiver" in said


def test_a_queue_smaller_than_a_batch_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """N4: legal values that the SDK refuses."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "100")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "0")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "0")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_TIMEOUT", "0")
    monkeypatch.setenv("OTEL_METRICS_EXEMPLAR_FILTER", "ALWAYS_OFF")
    with grpc_receiver() as received:
        with Telemetry(endpoint=received.endpoint) as telemetry:
            emit(telemetry)
        assert received.span_names() == [semconv.DIT_STEP] * 3
        assert set(received.metric_names()) == {"acestep.requests"}


@pytest.mark.parametrize("limit", ["0", "1", "8"])
def test_limits_cut_what_is_exported_and_nothing_that_figures_come_from(
    monkeypatch: pytest.MonkeyPatch, limit: str, tmp_path: Path
) -> None:
    """N5."""
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", limit)
    monkeypatch.setenv("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "2")
    monkeypatch.setenv("OTEL_SPAN_EVENT_COUNT_LIMIT", "1")
    path = tmp_path / "trace.jsonl"
    with grpc_receiver() as received:
        with Telemetry(endpoint=received.endpoint, trace_output=path) as telemetry:
            attributes = {f"key {number}": "value" for number in range(20)}
            span = telemetry.tracer_provider.get_tracer("test").start_span("span", attributes=attributes)
            span.add_event("first")
            span.add_event("second")
            span.end()
            telemetry.write_trace_file()
        (kept,) = telemetry.collector.finished_spans
        assert kept.attributes == attributes
        assert [event.name for event in kept.events] == ["first", "second"]
        sent = received.traces[0].resource_spans[0].scope_spans[0].spans[0]
    assert [pair.value.string_value for pair in sent.attributes] == ["va"] * int(limit)
    assert sent.dropped_attributes_count == 20 - int(limit)
    assert [event.name for event in sent.events] == ["second"]
    with path.open(encoding="utf-8") as lines:
        (written,) = FinishedSpan.from_otlp_json(lines)
    assert len(written.attributes) == int(limit)


@pytest.mark.parametrize(
    ("attributes", "name", "instance"),
    [
        ("service.name=", "acestep-otel", None),
        ("service.instance.id= ,a=b", "acestep-otel", None),
        ("service.name=studio", "studio", None),
        ("service.instance.id=a7", "acestep-otel", "a7"),
    ],
)
def test_an_identity_that_is_empty_takes_its_default(
    monkeypatch: pytest.MonkeyPatch, attributes: str, name: str, instance: str | None
) -> None:
    """N25."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", " ")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", attributes)
    found = Telemetry().tracer_provider.resource.attributes
    assert found["service.name"] == name
    assert found["host.name"] == (platform.node() or "localhost")
    if instance is None:
        # Unique for what runs at the same time.
        assert len(str(uuid.UUID(str(found["service.instance.id"])))) == 36
    else:
        assert found["service.instance.id"] == instance


def test_histograms_that_the_boards_cannot_show_are_named_at_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variable = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"
    monkeypatch.setenv(variable, "base2_exponential_bucket_histogram")
    Telemetry()
    assert capsys.readouterr().err == ""
    with grpc_receiver() as received, Telemetry(endpoint=received.endpoint):
        pass
    assert f"warning: {variable}=base2_exponential_bucket_histogram" in capsys.readouterr().err
