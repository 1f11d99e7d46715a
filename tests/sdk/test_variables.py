"""Every standard variable has a rule: legal values work, others are one line that names the variable."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import environment_variables as of_the_api
from opentelemetry.sdk import environment_variables as of_the_sdk

from acestep_otel.errors import SetupError
from acestep_otel.sdk import variables
from acestep_otel.sdk.pairs import parse_headers, parse_resource_attributes
from acestep_otel.sdk.variables import drop_wrong, require_variables, suit_sdk, wrong_variables

ELSEWHERE = {
    # Where a signal goes: acestep_otel.sdk.otlp.
    "OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER", "OTEL_LOGS_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
    "OTEL_EXPORTER_ZIPKIN_ENDPOINT",
    # Any text is right, or only the agent reads it.
    "OTEL_SERVICE_NAME", "OTEL_TRACES_SAMPLER_ARG", "OTEL_CONFIG_FILE", "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS",
    "OTEL_PYTHON_CONTEXT", "OTEL_PYTHON_ID_GENERATOR", "OTEL_PYTHON_LOGGER_CONFIGURATOR",
    "OTEL_PYTHON_METER_CONFIGURATOR", "OTEL_PYTHON_TRACER_CONFIGURATOR", "OTEL_PYTHON_TRACER_PROVIDER",
    "OTEL_PYTHON_METER_PROVIDER", "OTEL_PYTHON_LOGGER_PROVIDER",
}  # fmt: skip


def test_every_variable_of_the_sdk_has_a_rule() -> None:
    known = {
        value
        for module in (of_the_api, of_the_sdk)
        for name, value in vars(module).items()
        if name.startswith("OTEL_") and isinstance(value, str)
    }
    assert {name for name in known if name.startswith("OTEL_")} - ELSEWHERE <= set(variables._RULES)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
        ("OTEL_BSP_SCHEDULE_DELAY", "0"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "0"),
        ("OTEL_METRICS_EXEMPLAR_FILTER", "Always_Off"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "0"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10000"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "none"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer%20abc, x-tenant=a=b,"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer abc"),
        ("OTEL_EXPORTER_PROMETHEUS_HOST", "::1"),
        ("OTEL_PROPAGATORS", "tracecontext, baggage,acestep_force"),
        ("OTEL_PROPAGATORS", "none"),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.namespace=studio%2Cnorth,deployment.environment.name=test,"),
        ("OTEL_SDK_DISABLED", "TRUE"),
        ("OTEL_TRACES_SAMPLER", "ParentBased_TraceIdRatio"),
        ("OTEL_TRACES_SAMPLER", "acestep_forcible_traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "1e-3"),
    ],
)
def test_a_legal_value_is_right(name: str, value: str) -> None:
    assert wrong_variables({name: value}) == ()


@pytest.mark.parametrize(
    ("name", "value", "way_out"),
    [
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0", "give a whole number from 1"),
        ("OTEL_BSP_SCHEDULE_DELAY", "-1", "give a whole number of milliseconds from 0"),
        ("OTEL_METRICS_EXEMPLAR_FILTER", "bogus", "choose always_on, always_off or trace_based"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "abc", "give a whole number from 0"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "9" * 6_000, "give a whole number from 0"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "give a whole number of milliseconds"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "nan", "give a whole number of milliseconds"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip", "choose gzip, deflate or none"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere.pem", "does not name a file that exists"),
        ("OTEL_EXPORTER_OTLP_INSECURE", "yes", "choose true or false"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "choose grpc or http/protobuf"),
        ("OTEL_EXPORTER_PROMETHEUS_HOST", "a b", "give a host name or an IP address"),
        ("OTEL_PROPAGATORS", "bogus", "choose from "),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=b,c", "entry 2 ('c') is not key=value"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=%ff", "not UTF-8"),
        ("OTEL_TRACES_SAMPLER", "sometimes", "choose from "),
        ("OTEL_TRACES_SAMPLER_ARG", "nan", "give a share from 0 to 1"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5", "give a share from 0 to 1"),
    ],
)
def test_any_other_value_is_one_line_with_the_variable_and_the_way_out(name: str, value: str, way_out: str) -> None:
    (wrong,) = wrong_variables({name: value})
    assert str(wrong).startswith(name)
    assert way_out in str(wrong)
    assert len(str(wrong)) < 300


def test_variables_that_depend_on_each_other_are_looked_at_together() -> None:
    (wrong,) = wrong_variables({"OTEL_BSP_MAX_QUEUE_SIZE": "100", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "200"})
    assert str(wrong) == "OTEL_BSP_MAX_EXPORT_BATCH_SIZE='200' is larger than OTEL_BSP_MAX_QUEUE_SIZE, 100"
    assert wrong_variables({"OTEL_TRACES_SAMPLER": "always_on", "OTEL_TRACES_SAMPLER_ARG": "for someone else"}) == ()


@pytest.mark.parametrize("blank", ["", " ", "\t"])
def test_empty_is_unset(blank: str) -> None:
    """N25: the specification has it so for every variable."""
    environment = dict.fromkeys([*variables._RULES, "OTEL_SERVICE_NAME"], blank) | {"OTHER": ""}
    assert wrong_variables(environment) == ()
    require_variables(environment)
    assert environment == {"OTHER": ""}


def test_a_person_gets_one_line_with_all_of_them() -> None:
    environment = {"OTEL_BSP_SCHEDULE_DELAY": "soon", "OTEL_SDK_DISABLED": "perhaps"}
    with pytest.raises(SetupError, match=r"^OTEL_BSP_SCHEDULE_DELAY='soon' .*; OTEL_SDK_DISABLED='perhaps' "):
        require_variables(environment)


def test_a_service_starts_with_the_defaults_of_what_is_wrong() -> None:
    environment = {"OTEL_BSP_SCHEDULE_DELAY": "soon", "OTEL_SERVICE_NAME": "", "OTEL_BSP_MAX_QUEUE_SIZE": "100"}
    assert [wrong.name for wrong in drop_wrong(environment)] == ["OTEL_BSP_SCHEDULE_DELAY"]
    assert environment == {"OTEL_BSP_MAX_QUEUE_SIZE": "100"}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("api-key: PLANTED", "entry 1"),
        ("a=b,PLANTED", "entry 2"),
        ("api-key: PLANTED=PLANTED", "entry 1"),
        ("the key=PLANTED", "entry 1"),
        ('api-key="PLANTED"', "'api-key'"),
        ("api-key=PLÄNTED PLANTED", "'api-key'"),
        ("x_key=PLANTED%0aPLANTED", "'x_key'"),
        ("x%20key=PLANTED", "entry 1"),
        ("=PLANTED", "entry 1"),
    ],
)
@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"])
def test_a_header_that_was_mistyped_is_named_and_its_value_never_shown(variable: str, text: str, named: str) -> None:
    (wrong,) = wrong_variables({variable: text})
    assert str(wrong).startswith(f"{variable}: ")
    assert named in str(wrong)
    assert "name=value" in str(wrong)
    assert "PL" not in str(wrong)


def test_a_key_in_place_of_its_file_is_not_shown() -> None:
    (wrong,) = wrong_variables({"OTEL_EXPORTER_OTLP_CLIENT_KEY": "-----BEGIN PRIVATE KEY----- PLANTED"})
    assert "PLANTED" not in str(wrong)


def test_a_certificate_that_is_none_is_found_before_the_first_connection(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("no certificate", "utf-8")
    (wrong,) = wrong_variables({"OTEL_EXPORTER_OTLP_CERTIFICATE": str(file)})
    assert str(wrong) == "OTEL_EXPORTER_OTLP_CERTIFICATE names a file that contains no certificates in PEM format"
    environment = {
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": str(file),
        "OTEL_EXPORTER_OTLP_CLIENT_KEY": str(file),
    }
    assert [wrong.name for wrong in wrong_variables(environment)] == ["OTEL_EXPORTER_OTLP_CLIENT_KEY"]


def test_what_pairs_say() -> None:
    assert parse_headers("H", "Authorization=Bearer%20abc, x-b = c=d ,") == {
        "authorization": "Bearer abc",
        "x-b": "c=d",
    }
    assert parse_resource_attributes("R", "a=b%2Cc, service.name= ,d=e=f") == {"a": "b,c", "d": "e=f"}


@given(st.sampled_from(sorted(variables._RULES)), st.text(st.characters(exclude_characters="\0"), max_size=30))
def test_any_text_is_right_or_one_line(name: str, value: str) -> None:
    for wrong in wrong_variables({name: value}):
        assert str(wrong).startswith(name)
        assert "\n" not in str(wrong)


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({}, {}),
        ({"OTEL_BSP_SCHEDULE_DELAY": "0"}, {"OTEL_BSP_SCHEDULE_DELAY": "1"}),
        ({"OTEL_METRIC_EXPORT_INTERVAL": "0"}, {"OTEL_METRIC_EXPORT_INTERVAL": "1"}),
        (
            {"OTEL_BSP_MAX_QUEUE_SIZE": "100"},
            {"OTEL_BSP_MAX_QUEUE_SIZE": "100", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "100"},
        ),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "600"}, {"OTEL_BSP_MAX_QUEUE_SIZE": "600"}),
        (
            {"OTEL_RESOURCE_ATTRIBUTES": "a=1,service.instance.id=, b = ,c=x=y"},
            {"OTEL_RESOURCE_ATTRIBUTES": "a=1,c=x=y"},
        ),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name="}, {}),
    ],
)
def test_legal_values_that_the_sdk_refuses_are_replaced_by_what_they_mean(
    given: dict[str, str], left: dict[str, str]
) -> None:
    suit_sdk(given)
    assert given == left
