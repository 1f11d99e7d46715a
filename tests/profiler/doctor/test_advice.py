"""N3, N19, N22: each answer has its own advice, and following it resolves the failure."""

from __future__ import annotations

import re
from http import HTTPStatus
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from acestep_otel.profiler.cli import main
from tests.receivers import answering, grpc_answering, grpc_receiver, http_receiver, tls_port

HTTP = ("--otlp-protocol", "http/protobuf", "--wait", "0")
GRPC = ("--otlp-protocol", "grpc", "--wait", "0")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acestep_otel.profiler.doctor.send._EXPORT_SECONDS", 3.0)


class Doctor:
    """Runs the subcommand and keeps what it said."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.said = ""

    def __call__(self, *arguments: str) -> int:
        code = main(["doctor", *arguments])
        self.said = "".join(self._capsys.readouterr())
        return code

    @property
    def advice(self) -> list[str]:
        return re.findall(r"→  (.+)", self.said)


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    return Doctor(capsys)


def test_a_page_of_html_is_no_receiver(doctor: Doctor) -> None:
    with answering(body=b"<html>Sign in</html>", content_type="text/html") as endpoint, http_receiver() as received:
        assert doctor("--otlp-endpoint", endpoint, *HTTP) == 1
        assert "not as an OTLP receiver: 200 OK" in doctor.said
        assert doctor.advice == [
            "name the receiver's port in --otlp-endpoint (http/protobuf usually has 4318): this is another service"
        ]
        assert doctor("--otlp-endpoint", received.endpoint, *HTTP) == 0


def test_text_that_is_no_answer_of_the_protocol_is_none_either(doctor: Doctor) -> None:
    with answering(body=b"OK", content_type="text/plain") as endpoint:
        assert doctor("--otlp-endpoint", endpoint, *HTTP) == 1
    with answering(body=b"{}", content_type="application/json") as endpoint:
        assert doctor("--otlp-endpoint", endpoint, *HTTP) == 0


def test_a_redirect_to_a_login_is_one(doctor: Doctor) -> None:
    with answering(302, Location="https://u:PLANTED@login.example/sign-in?token=PLANTED") as endpoint:
        assert doctor("--otlp-endpoint", endpoint, *HTTP) == 1
    assert "it redirects to another address: 302 Found: to https://login.example/sign-in" in doctor.said
    assert "PLANTED" not in doctor.said
    assert doctor.advice == ["name the receiver itself in --otlp-endpoint: this address is a login page or a proxy"]


def test_spans_that_were_rejected_did_not_arrive(doctor: Doctor) -> None:
    partial = ExportTracePartialSuccess(rejected_spans=1, error_message="too many attributes")
    body = ExportTraceServiceResponse(partial_success=partial).SerializeToString()
    with answering(body=body) as endpoint:
        assert doctor("--otlp-endpoint", endpoint, *HTTP) == 1
    assert "too many attributes" in doctor.said
    with grpc_answering(rejected=1, words="too many attributes") as endpoint:
        assert doctor("--otlp-endpoint", endpoint, *GRPC) == 1
    assert "traces: not accepted" in doctor.said
    assert "metrics: accepted" in doctor.said
    assert doctor.advice == ["look at the receiver's log: it accepted the request and rejected its content"]


@pytest.mark.parametrize(
    ("status", "shown", "way_out"),
    [
        (503, "503 Service Unavailable", "it is running but cannot accept data now"),
        (429, "429 Too Many Requests", "try again later"),
        (401, "401 Unauthorized", "set OTEL_EXPORTER_OTLP_HEADERS"),
        (413, f"413 {HTTPStatus(413).phrase}", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"),
    ],
)
def test_a_status_is_kept_and_has_its_own_advice(doctor: Doctor, status: int, shown: str, way_out: str) -> None:
    with answering(status) as endpoint:
        assert doctor("--otlp-endpoint", endpoint, *HTTP) == 1
    assert shown in doctor.said
    assert way_out in " ".join(doctor.advice)


def test_a_key_that_is_asked_for_is_given_and_never_shown(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """N20: a receiver that quotes the key in its refusal is not quoted."""
    with grpc_answering(grpc.StatusCode.UNAUTHENTICATED, "wrong key: WRONG", key="RIGHT") as endpoint:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=WRONG")
        assert doctor("--otlp-endpoint", endpoint, *GRPC) == 1
        assert "UNAUTHENTICATED: wrong key: ***" in doctor.said
        assert doctor.advice == ["the receiver refuses the token in OTEL_EXPORTER_OTLP_HEADERS: correct it there"]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=RIGHT")
        assert doctor("--otlp-endpoint", endpoint, *GRPC) == 0


def test_a_receiver_without_metrics_gets_none(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """N19: with the endpoint in the flag, the advice leads out."""
    with grpc_answering(metrics=False) as endpoint:
        assert doctor("--otlp-endpoint", endpoint, *GRPC) == 1
        assert "UNIMPLEMENTED" in doctor.said
        (advice,) = doctor.advice
        assert "OTEL_METRICS_EXPORTER=none" in advice
        monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
        assert doctor("--otlp-endpoint", endpoint, *GRPC) == 0


def test_both_signals_off_is_said(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert doctor("--otlp-endpoint", "http://127.0.0.1:9", *GRPC) == 1
    assert "both signals are switched off" in doctor.said
    (advice,) = doctor.advice
    assert "OTEL_TRACES_EXPORTER" in advice


def test_tls_to_a_plain_port_is_not_the_wrong_protocol(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    with http_receiver() as received:
        secure = received.endpoint.replace("http:", "https:")
        assert doctor("--otlp-endpoint", secure, *HTTP) == 1
        assert "TLS was used, but the port does not support it" in doctor.said
        assert doctor.advice == [f"write {received.endpoint} in --otlp-endpoint"]
        assert doctor("--otlp-endpoint", received.endpoint, *HTTP) == 0


def test_a_variable_without_a_scheme_means_tls_over_grpc_and_is_shown_so(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """N22."""
    with grpc_receiver() as received:
        place = received.endpoint.removeprefix("http://")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", place)
        assert doctor("--wait", "0") == 1
        assert f"not accepted by https://{place}: TLS was used, but the port does not support it" in doctor.said
        assert doctor.advice == [
            f"write http://{place} in OTEL_EXPORTER_OTLP_ENDPOINT, or set OTEL_EXPORTER_OTLP_INSECURE=true"
        ]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_INSECURE", "true")
        assert doctor("--wait", "0") == 0
        assert f"accepted by http://{place}" in doctor.said
        monkeypatch.delenv("OTEL_EXPORTER_OTLP_INSECURE")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{place}")
        assert doctor("--wait", "0") == 0


@pytest.mark.parametrize("protocol", [HTTP, GRPC], ids=["http", "grpc"])
def test_a_port_that_requires_tls_is_detected(doctor: Doctor, protocol: tuple[str, ...], tmp_path: Path) -> None:
    with tls_port(tmp_path) as port:
        assert doctor("--otlp-endpoint", f"http://127.0.0.1:{port}", *protocol) == 1
        assert doctor.advice == [f"write https://127.0.0.1:{port} in --otlp-endpoint"]
        assert doctor("--otlp-endpoint", f"https://127.0.0.1:{port}", *protocol) == 1
        assert doctor.advice == [
            "set OTEL_EXPORTER_OTLP_CERTIFICATE to the file with the receiver's certificate authority"
        ]


def test_a_port_that_refuses_plain_text_with_a_status_is_detected(doctor: Doctor, tmp_path: Path) -> None:
    with tls_port(tmp_path, refuses_plain_text=True) as port:
        assert doctor("--otlp-endpoint", f"http://127.0.0.1:{port}", *HTTP) == 1
        assert doctor.advice == [f"write https://127.0.0.1:{port} in --otlp-endpoint"]


def test_a_bad_request_without_tls_is_left_as_it_is(doctor: Doctor) -> None:
    with answering(400) as endpoint:
        assert doctor("--otlp-endpoint", endpoint, *HTTP) == 1
    assert "400 Bad Request" in doctor.said
    assert doctor.advice == ["look at the receiver's log: it does not accept what was sent"]


@pytest.mark.parametrize("spoken", ["grpc", "http/protobuf"])
def test_the_other_protocol_is_named_and_right(doctor: Doctor, spoken: str) -> None:
    receiver = http_receiver if spoken == "grpc" else grpc_receiver
    with receiver() as received:
        arguments = ("--otlp-endpoint", received.endpoint, "--wait", "0")
        assert doctor(*arguments, "--otlp-protocol", spoken) == 1
        (advice,) = doctor.advice
        other = re.findall(r"--otlp-protocol (\S+),", advice)[0]
        assert doctor(*arguments, "--otlp-protocol", other) == 0


def test_an_address_of_a_signal_without_its_path_is_completed(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    with http_receiver() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", received.endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        assert doctor("--wait", "0") == 1
        assert f"not accepted by {received.endpoint}/: 404 Not Found" in doctor.said
        assert doctor.advice == ["end the address in OTEL_EXPORTER_OTLP_TRACES_ENDPOINT with /v1/traces"]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{received.endpoint}/v1/traces")
        assert doctor("--wait", "0") == 0


def test_a_base_with_the_path_of_a_signal_is_one_line(doctor: Doctor) -> None:
    with http_receiver() as received:
        assert doctor("--otlp-endpoint", f"{received.endpoint}/v1/traces", *HTTP) == 2
        assert f"that is the address of one signal: give {received.endpoint}" in doctor.said
        assert doctor("--otlp-endpoint", received.endpoint, *HTTP) == 0
