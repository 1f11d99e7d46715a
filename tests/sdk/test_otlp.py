"""Where telemetry goes follows the standard variables; the command line wins over them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from acestep_otel.errors import SetupError
from acestep_otel.sdk.otlp import (
    HISTOGRAMS,
    TEMPORALITY,
    OtlpTarget,
    differences_caveat,
    histogram_caveat,
    metric_exporter,
    otlp_target,
    signal_variable,
    span_exporter,
)

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


def test_the_command_line_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    target = otlp_target("traces", endpoint="http://h:4318/", protocol="http/protobuf")
    assert target == OtlpTarget("http/protobuf", "http://h:4318/")
    assert target.url("traces") == "http://h:4318/v1/traces"


def test_tls_follows_the_scheme() -> None:
    assert OtlpTarget("grpc", "http://h:4317").insecure is True
    assert OtlpTarget("grpc", "https://h:4317").insecure is False
    assert OtlpTarget("grpc").insecure is None


@pytest.mark.parametrize("endpoint", ["localhost:4317", "h", "", "ftp://h", "http://"])
def test_an_endpoint_that_is_no_url_is_refused(endpoint: str) -> None:
    with pytest.raises(SetupError, match="is not a URL such as"):
        otlp_target("traces", endpoint=endpoint)


def test_an_unknown_protocol_or_exporter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    with pytest.raises(SetupError, match="'http/json' is not supported: choose grpc or http/protobuf"):
        otlp_target("traces", endpoint="http://h:1")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "zipkin")
    with pytest.raises(SetupError, match="OTEL_METRICS_EXPORTER='zipkin' is not supported"):
        otlp_target("metrics")


def test_a_setting_that_the_exporter_refuses_is_a_setup_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "soon")
    with pytest.raises(SetupError, match=r"cannot set up the OTLP exporter of traces: .*soon"):
        span_exporter(OtlpTarget("grpc", "http://h:1"))
    with pytest.raises(SetupError, match=r"cannot set up the OTLP exporter of metrics: .*soon"):
        metric_exporter(OtlpTarget("grpc", "http://h:1"))


@pytest.mark.parametrize("setting", ["CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY"])
@pytest.mark.parametrize("make", [span_exporter, metric_exporter])
def test_a_certificate_that_is_not_there_is_one_error(
    setting: str, make: Callable[[OtlpTarget], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{setting}", "/nowhere/file.pem")
    with pytest.raises(SetupError, match=f"OTEL_EXPORTER_OTLP_{setting}: there is no file '/nowhere/file.pem'"):
        make(OtlpTarget("grpc", "https://localhost:4317"))


def test_a_signals_own_variable_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    assert signal_variable("traces", "HEADERS") == ("OTEL_EXPORTER_OTLP_HEADERS", None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "a=b")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "c=d")
    assert signal_variable("traces", "HEADERS") == ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "c=d")
    assert signal_variable("metrics", "HEADERS") == ("OTEL_EXPORTER_OTLP_HEADERS", "a=b")


def test_what_differences_and_exponential_histograms_need_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (TEMPORALITY, HISTOGRAMS):
        monkeypatch.delenv(variable, raising=False)
    assert (differences_caveat(), histogram_caveat()) == (None, None)
    monkeypatch.setenv(TEMPORALITY, "Delta")
    monkeypatch.setenv(HISTOGRAMS, "base2_exponential_bucket_histogram")
    assert "otlp-deltatocumulative" in str(differences_caveat())
    assert f"{HISTOGRAMS}=base2_exponential_bucket_histogram" in str(histogram_caveat())
