"""Subcommand ``doctor``: output and exit code, against real receivers, closed ports and simulated stores."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote

import pytest

from acestep_otel import semconv
from acestep_otel.profiler.cli import main
from tests.receivers import (
    IPV4,
    IPV6,
    Received,
    grpc_receiver,
    http_receiver,
    refusing_endpoint,
    serving,
    silent_endpoint,
    tls_port,
)

RUN = ("--tiny", "--no-warmup", "--duration", "10", "--inference-steps", "1", "--no-progress")


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def store(answer: Callable[[str], object | None], host: str = IPV4) -> Iterator[str]:
    """A store that answers with JSON, or "not found" for ``None``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answer(unquote(self.path))
            self.send_response(404 if found is None else 200)
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(Handler, host) as address:
        yield address


def jaeger_of(received: Received) -> Callable[[str], object | None]:
    """Jaeger's answer: the traces that a receiver got."""

    def answer(path: str) -> object | None:
        traces = {
            span.trace_id.hex()
            for request in received.traces
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }
        wanted = path.removeprefix("/api/traces/")
        return {"data": [{"traceID": wanted}]} if wanted in traces else None

    return answer


def samples(*values: float) -> object:
    result = [{"metric": {}, "value": [0, str(value)]} for value in values]
    return {"status": "success", "data": {"resultType": "vector", "result": result}}


@pytest.mark.parametrize(("receiver", "protocol"), [(grpc_receiver, "grpc"), (http_receiver, "http/protobuf")])
def test_what_is_accepted_is_said_and_sent_once(
    receiver: Callable[[], AbstractContextManager[Received]], protocol: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with receiver() as received:
        assert main(["doctor", "--otlp-endpoint", received.endpoint, "--otlp-protocol", protocol, "--wait", "0"]) == 0
    assert received.span_names() == [semconv.DOCTOR]
    assert received.metric_names() == [semconv.DOCTOR_TIME.name]
    said = capsys.readouterr()
    assert f"✓  traces: accepted by {received.endpoint}" in said.out
    assert f"✓  metrics: accepted by {received.endpoint}" in said.out
    assert said.err == ""


def test_the_environments_endpoint_is_the_one_that_is_tried(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with grpc_receiver() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        assert main(["doctor", "--wait", "0"]) == 0
    assert f"accepted by {received.endpoint}" in capsys.readouterr().out


def test_nothing_listens_is_exit_1_with_a_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    with refusing_endpoint() as endpoint:
        assert main(["doctor", "--otlp-endpoint", endpoint]) == 1
    said = capsys.readouterr()
    assert f"✗  traces: not accepted by {endpoint}: connection refused by" in said.out
    assert "→  start a collector (docker compose up -d)" in said.out
    assert said.err == "error: telemetry did not arrive; see above\n"


def test_no_endpoint_is_said_and_the_usual_one_tried(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with refusing_endpoint() as endpoint:
        monkeypatch.setattr("acestep_otel.sdk.otlp.DEFAULT_ENDPOINTS", {"grpc": endpoint})
        assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "no endpoint is configured, so a run sends nothing" in said
    assert f"→  set OTEL_EXPORTER_OTLP_ENDPOINT={endpoint}" in said


def test_a_port_that_never_answers_is_given_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("acestep_otel.profiler.doctor.send._EXPORT_SECONDS", 0.5)
    started = time.monotonic()
    with silent_endpoint() as endpoint:
        assert main(["doctor", "--otlp-endpoint", endpoint]) == 1
    assert time.monotonic() - started < 10
    assert "no answer in time: waited 0.5 s" in capsys.readouterr().out


def test_the_wrong_protocol_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acestep_otel.profiler.doctor.send._EXPORT_SECONDS", 2.0)
    with http_receiver() as received:
        assert main(["doctor", "--otlp-endpoint", received.endpoint, "--otlp-protocol", "grpc"]) == 1
    assert "→  choose --otlp-protocol http/protobuf, or the port for grpc" in capsys.readouterr().out


def test_an_unknown_host_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--otlp-endpoint", "http://collector.invalid:4317"]) == 1
    assert "unknown host 'collector.invalid'" in capsys.readouterr().out


def test_a_signal_that_is_switched_off_is_not_missed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    with grpc_receiver() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        assert main(["doctor", "--wait", "0"]) == 0
    assert received.metric_names() == []
    assert "metrics: not sent" in capsys.readouterr().out


def test_a_disabled_sdk_is_the_diagnosis(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert main(["doctor"]) == 1
    assert "→  unset OTEL_SDK_DISABLED" in capsys.readouterr().out


def test_stores_are_asked_until_they_have_it(capsys: pytest.CaptureFixture[str]) -> None:
    questions = []

    def late(path: str) -> object:
        questions.append(path)
        return samples() if len(questions) < 3 else samples(time.time())

    with grpc_receiver() as received, store(jaeger_of(received)) as jaeger, store(late) as prometheus:
        addresses = ("--jaeger-url", jaeger, "--prometheus-url", prometheus)
        assert main(["doctor", "--otlp-endpoint", received.endpoint, *addresses]) == 0
    said = capsys.readouterr().out
    trace = received.traces[0].resource_spans[0].scope_spans[0].spans[0].trace_id.hex()
    assert f"✓  Jaeger {jaeger}: trace {trace} found" in said
    assert f"✓  Prometheus {prometheus}: acestep_doctor_time_seconds found" in said
    assert len(questions) == 3


@pytest.mark.parametrize(("receiver", "protocol"), [(grpc_receiver, "grpc"), (http_receiver, "http/protobuf")])
def test_receiver_and_stores_may_have_ipv6_addresses(
    receiver: Callable[[str], AbstractContextManager[Received]],
    protocol: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """N9."""
    with (
        receiver(IPV6) as received,
        store(jaeger_of(received), IPV6) as jaeger,
        store(lambda _: samples(time.time()), IPV6) as prometheus,
    ):
        addresses = ("--jaeger-url", jaeger, "--prometheus-url", prometheus)
        assert main(["doctor", "--otlp-endpoint", received.endpoint, "--otlp-protocol", protocol, *addresses]) == 0
        run = (*RUN, "--output-dir", str(tmp_path), "--otlp-endpoint", received.endpoint, "--otlp-protocol", protocol)
        assert main(run) == 0
    said = capsys.readouterr()
    assert received.endpoint.startswith("http://[::1]:")
    assert f"accepted by {received.endpoint}" in said.out
    assert f"✓  Jaeger {jaeger}: trace" in said.out
    assert f"✓  Prometheus {prometheus}: " in said.out
    assert said.err == ""
    assert semconv.GENERATE_MUSIC in received.span_names()
    assert semconv.REQUESTS.name in received.metric_names()


def test_what_is_wrong_at_an_ipv6_address_is_found_out_and_shown_in_brackets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """N9: a port where nothing listens, the other protocol, TLS to a port without and the reverse."""
    monkeypatch.setattr("acestep_otel.profiler.doctor.send._EXPORT_SECONDS", 2.0)

    def said(endpoint: str, protocol: str = "grpc") -> str:
        assert main(["doctor", "--otlp-endpoint", endpoint, "--otlp-protocol", protocol, "--wait", "0"]) == 1
        return capsys.readouterr().out

    with refusing_endpoint(IPV6) as endpoint:
        assert f"✗  traces: not accepted by {endpoint}: connection refused by" in said(endpoint)
    with http_receiver(IPV6) as received:
        assert "→  choose --otlp-protocol http/protobuf" in said(received.endpoint)
        plain = received.endpoint
        assert f"→  write {plain} in --otlp-endpoint" in said(plain.replace("http:", "https:"), "http/protobuf")
    with tls_port(tmp_path, IPV6) as port:
        assert f"→  write https://[::1]:{port} in --otlp-endpoint" in said(f"http://[::1]:{port}", "http/protobuf")


def test_an_older_metric_is_not_taken_for_this_one(capsys: pytest.CaptureFixture[str]) -> None:
    with grpc_receiver() as received, store(lambda _: samples(time.time() - 60)) as prometheus:
        arguments = ("--prometheus-url", prometheus, "--wait", "0")
        assert main(["doctor", "--otlp-endpoint", received.endpoint, *arguments]) == 1
    said = capsys.readouterr().out
    assert f"✗  Prometheus {prometheus}: acestep_doctor_time_seconds not found within 0 s" in said
    assert "→  check Status > Targets there" in said


def test_a_store_that_was_named_must_answer(capsys: pytest.CaptureFixture[str]) -> None:
    with grpc_receiver() as received, refusing_endpoint() as jaeger:
        assert main(["doctor", "--otlp-endpoint", received.endpoint, "--jaeger-url", jaeger, "--wait", "0"]) == 1
    assert f"✗  Jaeger {jaeger}: unreachable" in capsys.readouterr().out


def test_another_service_at_the_address_is_not_a_missing_metric(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Grafana's address, say: waiting for a scrape would not help."""
    with grpc_receiver() as received, store(lambda _: None) as grafana:
        assert main(["doctor", "--otlp-endpoint", received.endpoint, "--prometheus-url", grafana]) == 1
    said = capsys.readouterr().out
    assert f"✗  Prometheus {grafana}: unreachable, or not the expected API" in said
    assert "→  correct the address" in said


@pytest.mark.parametrize("body", [b"[" * 200_000, b'{"data": NaN}', b'{"data": ' + b"9" * 6_000 + b"}", b"\xff\xfe"])
def test_what_a_store_answers_is_read_like_any_other_document(body: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    """N13."""

    class Hostile(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with grpc_receiver() as received, serving(Hostile) as address:
        assert main(["doctor", "--otlp-endpoint", received.endpoint, "--jaeger-url", address, "--wait", "0"]) == 1
    said = capsys.readouterr()
    assert f"✗  Jaeger {address}: unreachable, or not the expected API" in said.out
    assert said.err == "error: telemetry did not arrive; see above\n"


@pytest.mark.parametrize("option", ["--jaeger-url", "--prometheus-url"])
def test_an_address_that_is_none_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", option, "localhost:16686"]) == 2
    assert f"error: {option} 'localhost:16686' is not a URL" in capsys.readouterr().err


def test_options_before_it_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tiny", "doctor"]) == 2
    assert "doctor does not take --tiny" in capsys.readouterr().err
