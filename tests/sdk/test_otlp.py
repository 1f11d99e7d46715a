"""Where telemetry goes follows the standard variables; the command line wins over them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from acestep_otel.errors import SetupError
from acestep_otel.sdk.answers import Delivery, Signal
from acestep_otel.sdk.otlp import (
    FLAG,
    HISTOGRAMS,
    TEMPORALITY,
    OtlpTarget,
    answers_of,
    differences_caveat,
    histogram_caveat,
    otlp_target,
    span_exporter,
)
from tests.receivers import Received, grpc_receiver, http_receiver

VARIABLES = (
    "OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
)  # fmt: skip


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_nothing_configured_goes_nowhere() -> None:
    assert otlp_target("traces") is None
    assert otlp_target("metrics") is None


@pytest.mark.parametrize(
    ("environment", "traces", "metrics"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:1"}, "grpc", "grpc"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h:1"}, "grpc", None),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "grpc", None),
        ({"OTEL_METRICS_EXPORTER": "otlp"}, None, "grpc"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:1", "OTEL_METRICS_EXPORTER": "none"}, "grpc", None),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "http/protobuf", None),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:1",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            },
            "http/protobuf",
            "grpc",
        ),
    ],
)
def test_the_environment_decides(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], traces: str | None, metrics: str | None
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = [target and target.protocol for target in (otlp_target("traces"), otlp_target("metrics"))]
    assert found == [traces, metrics]


def targeted(signal: Signal = "traces", **arguments: str) -> OtlpTarget:
    target = otlp_target(signal, **arguments)
    assert target is not None
    return target


def test_the_command_line_wins_over_endpoint_and_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://other:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    target = targeted(endpoint="http://h:4318/", protocol="http/protobuf")
    assert (str(target), target.protocol, target.source) == ("http://h:4318/v1/traces", "http/protobuf", FLAG)


@pytest.mark.parametrize("signal", ["traces", "metrics"])
def test_the_flag_says_where_and_the_variable_which_signals_there_are(
    monkeypatch: pytest.MonkeyPatch, signal: Signal
) -> None:
    """N19."""
    monkeypatch.setenv(f"OTEL_{signal.upper()}_EXPORTER", "none")
    other: Signal = "metrics" if signal == "traces" else "traces"
    assert otlp_target(signal, endpoint="http://h:4317") is None
    assert otlp_target(other, endpoint="http://h:4317") is not None


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4317"}, "http://h:4317"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h"}, "http://h:80"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://h"}, "https://h:443"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[::1]:4317"}, "http://[::1]:4317"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4317"}, "https://localhost:4317"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "localhost:4317"}, "https://localhost:4317"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4317", "OTEL_EXPORTER_OTLP_INSECURE": "true"},
            "http://localhost:4317",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:1", "OTEL_EXPORTER_OTLP_INSECURE": "false"},
            "http://h:1",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318/otlp/", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            "http://h:4318/otlp/v1/traces",
        ),
        (
            {
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h:4318",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            },
            "http://h:4318/",
        ),
    ],
)
def test_the_displayed_protocol_is_the_exporters(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], shown: str
) -> None:
    """N22: the exporter is given the address that is shown, and asked here where it would send."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    target = targeted()
    assert str(target) == shown
    exporter: Any = span_exporter(target)
    if target.protocol == "grpc":
        assert f"{'http' if exporter._insecure else 'https'}://{exporter._endpoint}" == shown
    else:
        assert exporter._endpoint == shown
    exporter.shutdown()


@pytest.mark.parametrize("endpoint", ["localhost:4317", "h", "", "ftp://h", "http://", "http://h:99999", "not a url"])
def test_an_endpoint_that_is_no_url_is_refused(endpoint: str) -> None:
    with pytest.raises(SetupError, match=r"^--otlp-endpoint .* is not a URL such as http://localhost:4317"):
        otlp_target("traces", endpoint=endpoint)


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
@pytest.mark.parametrize(
    ("protocol", "endpoint"),
    [("http/protobuf", "localhost:4318"), ("grpc", "file:///etc/passwd"), ("grpc", "not a url at all")],
)
def test_and_so_it_is_in_a_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, protocol: str, endpoint: str
) -> None:
    monkeypatch.setenv(variable, endpoint)
    with pytest.raises(SetupError, match=f"^{variable} .* is not a URL such as http://localhost:431"):
        otlp_target("traces", protocol=protocol)


@pytest.mark.parametrize(("protocol", "way_out"), [("http/protobuf", "give http://h:1"), ("grpc", "http/protobuf")])
def test_a_base_that_has_the_path_of_a_signal_is_refused(protocol: str, way_out: str) -> None:
    with pytest.raises(SetupError, match=way_out):
        otlp_target("traces", endpoint="http://h:1/v1/traces", protocol=protocol)


def test_a_path_that_grpc_would_drop_is_refused() -> None:
    with pytest.raises(SetupError, match="over gRPC an address has no path, or choose http/protobuf"):
        otlp_target("traces", endpoint="http://h:1/otlp")


def test_an_unknown_protocol_or_exporter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    with pytest.raises(SetupError, match="OTLP_PROTOCOL='http/json' is not supported: choose grpc or http/protobuf"):
        otlp_target("traces", endpoint="http://h:1")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "zipkin")
    with pytest.raises(SetupError, match="OTEL_METRICS_EXPORTER='zipkin' is not supported"):
        otlp_target("metrics")


def test_a_program_may_answer_for_an_exporter_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp,prometheus")
    assert otlp_target("metrics", others=("prometheus",)) is not None
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "prometheus")
    assert otlp_target("metrics", others=("prometheus",)) is None


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_user_information_is_a_header_and_is_never_shown(protocol: str) -> None:
    """N15."""
    target = targeted(endpoint="http://user:PLANTED@h:1", protocol=protocol)
    assert target.headers == {"authorization": "Basic dXNlcjpQTEFOVEVE"}
    exporter: Any = span_exporter(target)
    assert "PLANTED" not in f"{target} {target!r} {exporter._endpoint}"
    exporter.shutdown()


def test_headers_of_the_signal_take_the_place_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "a=1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "b=2%203")
    assert targeted(endpoint="http://h:1").headers == {"b": "2 3"}
    assert targeted("metrics", endpoint="http://h:1").headers == {"a": "1"}


def test_a_header_that_grpc_cannot_send_is_refused_for_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x!key=PLANTED")
    with pytest.raises(SetupError, match="'x!key' cannot be sent over gRPC") as refusal:
        otlp_target("traces", endpoint="http://h:1")
    assert "PLANTED" not in str(refusal.value)
    assert targeted(endpoint="http://h:1", protocol="http/protobuf").headers == {"x!key": "PLANTED"}


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_timeout_is_milliseconds_as_the_specification_has_it(monkeypatch: pytest.MonkeyPatch, protocol: str) -> None:
    """N4: the SDK's exporters would take the number for seconds."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2500")
    assert targeted(endpoint="http://h:1", protocol=protocol).timeout == 2.5
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "0")
    assert targeted(endpoint="http://h:1", protocol=protocol).timeout == 86_400


@pytest.mark.parametrize("compression", ["none", "gzip", "Deflate"])
@pytest.mark.parametrize(("receiver", "protocol"), [(grpc_receiver, "grpc"), (http_receiver, "http/protobuf")])
def test_every_compression_of_the_specification_arrives(
    monkeypatch: pytest.MonkeyPatch,
    compression: str,
    receiver: Callable[[], AbstractContextManager[Received]],
    protocol: str,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", compression)
    delivered: list[Delivery] = []
    with receiver() as received:
        target = targeted(endpoint=received.endpoint, protocol=protocol)
        exporter = span_exporter(target, answers_of(target, delivered.append))
        exporter.export([a_span()])
        exporter.shutdown()
    assert [(delivery.lost, delivery.answer.cause) for delivery in delivered] == [(0, "accepted")]


def a_span() -> ReadableSpan:
    memory = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    provider.get_tracer("test").start_span("span").end()
    return memory.get_finished_spans()[0]


def test_what_differences_and_exponential_histograms_need_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (TEMPORALITY, HISTOGRAMS):
        monkeypatch.delenv(name, raising=False)
    assert (differences_caveat(), histogram_caveat()) == (None, None)
    monkeypatch.setenv(TEMPORALITY, "Delta")
    monkeypatch.setenv(HISTOGRAMS, "base2_exponential_bucket_histogram")
    assert "otlp-deltatocumulative" in str(differences_caveat())
    assert f"{HISTOGRAMS}=base2_exponential_bucket_histogram" in str(histogram_caveat())
