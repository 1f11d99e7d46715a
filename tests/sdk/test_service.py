"""``configure``: one call sets up the SDK from the environment, and one ends it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from tests.receivers import grpc_receiver
from tests.services import INSTRUMENT, ROOT

SAMPLED = """
import json, os, sys
from opentelemetry import context, propagate, trace
import acestep_otel
before = {name: value for name, value in os.environ.items() if value.strip() or not name.startswith("OTEL_")}
telemetry = acestep_otel.configure(service_name="songs")
assert telemetry.tracer_provider is trace.get_tracer_provider()
assert {**os.environ} == before
tracer = trace.get_tracer("test")
plain = tracer.start_span("plain").is_recording()
context.attach(propagate.extract({"x-force-trace": "true"}))
forced = tracer.start_span("forced").is_recording()
attributes = dict(telemetry.tracer_provider.resource.attributes)
print(json.dumps({"plain": plain, "forced": forced, "attributes": attributes}))
"""


def run(program: str, *launcher: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.run(
        [*launcher, sys.executable, "-c", program],
        cwd=ROOT,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def found(program: str, **environment: str) -> dict[str, object]:
    done = run(program, **environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    parsed: dict[str, object] = json.loads(done.stdout)
    return parsed


@pytest.mark.parametrize(
    ("environment", "plain", "forced"),
    [
        ({}, True, True),
        ({"OTEL_TRACES_SAMPLER_ARG": "0"}, False, True),
        ({"OTEL_TRACES_SAMPLER_ARG": " "}, True, True),
        ({"OTEL_TRACES_SAMPLER": ""}, True, True),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, False, False),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}, False, False),
        ({"OTEL_TRACES_SAMPLER": "acestep_forcible_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}, False, True),
        ({"OTEL_TRACES_SAMPLER_ARG": "0", "OTEL_PROPAGATORS": "tracecontext,acestep_force"}, False, True),
        ({"OTEL_TRACES_SAMPLER": "Always_On"}, True, True),
        ({"OTEL_SDK_DISABLED": "true"}, False, False),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_BSP_MAX_QUEUE_SIZE": "100", "OTEL_BSP_SCHEDULE_DELAY": "0"},
            True,
            True,
        ),
        ({"OTEL_METRICS_EXPORTER": "otlp", "OTEL_METRIC_EXPORT_INTERVAL": "0"}, True, True),
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value),
)
def test_the_sampler_is_the_one_that_the_environment_names(
    environment: dict[str, str], plain: bool, forced: bool
) -> None:
    seen = found(SAMPLED, **environment)
    assert (seen["plain"], seen["forced"]) == (plain, forced)


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, "songs"),
        ({"OTEL_SERVICE_NAME": "studio"}, "studio"),
        ({"OTEL_SERVICE_NAME": ""}, "songs"),
        ({"OTEL_SERVICE_NAME": "  "}, "songs"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=studio"}, "studio"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name="}, "songs"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=%20,service.instance.id="}, "songs"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=studio", "OTEL_SERVICE_NAME": ""}, "studio"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=other", "OTEL_SERVICE_NAME": "studio"}, "studio"),
        ({"OTEL_RESOURCE_ATTRIBUTES": " , "}, "songs"),
    ],
    ids=str,
)
def test_the_environment_names_the_service_and_what_is_empty_takes_its_default(
    environment: dict[str, str], name: str
) -> None:
    attributes = found(SAMPLED, **environment)["attributes"]
    assert isinstance(attributes, dict)
    assert attributes["service.name"] == name
    assert attributes["service.instance.id"] != ""


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("OTEL_TRACES_SAMPLER", "sometimes", "OTEL_TRACES_SAMPLER='sometimes' is not supported: choose from a"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5", "OTEL_TRACES_SAMPLER_ARG='1.5' is not supported: give a share from 0 to 1"),
        ("OTEL_METRICS_EXPORTER", "prometheus", "OTEL_METRICS_EXPORTER='prometheus' is not supported"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "OTEL_EXPORTER_OTLP_PROTOCOL='http/json' is not supported"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=b,c", "OTEL_RESOURCE_ATTRIBUTES"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "api-key: secret", "OTEL_EXPORTER_OTLP_HEADERS: entry 1"),
        ("OTEL_PROPAGATORS", "pigeon", "OTEL_PROPAGATORS='pigeon' is not supported: choose from "),
    ],
)
def test_a_value_that_means_nothing_is_one_error_that_names_the_variable(variable: str, value: str, said: str) -> None:
    program = (
        "import acestep_otel, threading\n"
        "try: acestep_otel.configure()\n"
        "except acestep_otel.SetupError as error: print(error, threading.active_count())"
    )
    done = run(program, **{variable: value})
    assert done.stdout.startswith(said)
    assert done.stdout.endswith(" 1\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "secret" not in done.stdout


def test_a_reader_of_the_service_s_own_makes_prometheus_a_word() -> None:
    program = (
        "from opentelemetry.exporter.prometheus import PrometheusMetricReader\n"
        "from prometheus_client import generate_latest\n"
        "import acestep_otel\n"
        "telemetry = acestep_otel.configure(metric_readers=[PrometheusMetricReader()])\n"
        "queue = acestep_otel.QueueTelemetry(3)\n"
        "print([line for line in generate_latest().decode().splitlines() if line.startswith('acestep_queue_cap')])\n"
        "telemetry.close()"
    )
    done = run(program, OTEL_METRICS_EXPORTER="prometheus")
    assert re.fullmatch(r"\['acestep_queue_capacity\S* 3.0'\]\n", done.stdout)
    assert done.stderr == ""


def test_close_delivers_what_is_queued_and_can_be_called_again() -> None:
    program = (
        "import acestep_otel\n"
        "from opentelemetry import trace\n"
        "telemetry = acestep_otel.configure(service_name='songs')\n"
        "acestep_otel.QueueTelemetry(3).enter().leave()\n"
        "telemetry.close()\n"
        "telemetry.close()"
    )
    with grpc_receiver() as received:
        done = run(program, OTEL_EXPORTER_OTLP_ENDPOINT=received.endpoint)
    assert (done.returncode, done.stderr) == (0, "")
    assert received.span_names() == ["acestep.queue.wait"]
    assert "acestep.queue.wait.duration" in received.metric_names()
    assert received.resource()["service.name"] == "songs"


def test_existing_providers_are_used_and_not_shut_down() -> None:
    program = (
        "from opentelemetry import metrics, trace\n"
        "import acestep_otel\n"
        "there = trace.get_tracer_provider(), metrics.get_meter_provider()\n"
        "telemetry = acestep_otel.configure(service_name='songs')\n"
        "assert (telemetry.tracer_provider, telemetry.meter_provider) == there\n"
        "telemetry.close()\n"
        "acestep_otel.QueueTelemetry(3).enter().leave()\n"
    )
    with grpc_receiver() as received:
        done = run(
            program,
            str(INSTRUMENT),
            OTEL_EXPORTER_OTLP_ENDPOINT=received.endpoint,
            OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
            OTEL_LOGS_EXPORTER="none",
            OTEL_SERVICE_NAME="studio",
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert received.span_names() == ["acestep.queue.wait"]
    assert received.resource()["service.name"] == "studio"


def test_a_reader_that_is_not_used_says_nothing_when_it_is_asked() -> None:
    program = (
        "from opentelemetry.exporter.prometheus import PrometheusMetricReader\n"
        "from prometheus_client import generate_latest\n"
        "import acestep_otel\n"
        "acestep_otel.configure(metric_readers=[PrometheusMetricReader()])\n"
        "generate_latest()"
    )
    nowhere = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}
    done = run(program, str(INSTRUMENT), **nowhere)
    assert (done.returncode, done.stderr) == (0, "")
