"""``opentelemetry-instrument python service.py``: a service of the engine, traced without a line of code."""

import os
import subprocess
import sys

import pytest

from tests.receivers import grpc_receiver, http_receiver
from tests.services import INSTRUMENT, ROOT, service, variables

SERVICE = """
import torch
torch.set_num_threads(1)
from acestep.checkpoints import TINY_DIT, ModelSelection, load_models
from acestep.inference import generate_music
from acestep.types import GenerationRequest

models = load_models(ModelSelection(dit=TINY_DIT, lm=None, device="cpu"))
song = generate_music(models, GenerationRequest(caption="a song", duration=10, seeds=(1,), inference_steps=2))
print(float(song.songs[0].audio.double().sum()))
"""


def test_a_service_is_traced_and_makes_the_same_song(tmp_path):
    script = tmp_path / "service.py"
    script.write_text(SERVICE)
    path = os.pathsep.join([str(ROOT), *sys.path[1:]])
    with http_receiver() as received:
        environment = variables(received.endpoint, OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf", PYTHONPATH=path)
        plain, traced = (
            subprocess.run(
                [*command, sys.executable, script], env=environment, capture_output=True, text=True, timeout=120
            )
            for command in ((), (INSTRUMENT,))
        )
    assert (plain.returncode, traced.returncode) == (0, 0), traced.stderr
    assert plain.stdout == traced.stdout
    assert received.span_names() == [
        "acestep.condition",
        "acestep.dit",
        *["acestep.dit.step"] * 2,
        "acestep.model.load",
        "acestep.vae.decode",
        "acestep.vae.tile",
        "generate_music",
    ]
    assert {"acestep.requests", "gen_ai.server.request.duration"} <= set(received.metric_names())
    assert received.resource()["service.name"] == "studio"


def test_the_entry_points_lead_somewhere():
    from importlib.metadata import entry_points

    # The agent reads names of variables from a module; there are none in it.
    (environment,) = entry_points(group="opentelemetry_environment_variables", name="acestep")
    assert not [name for name in dir(environment.load()) if name.startswith("OTEL_")]
    groups = ("instrumentor", "post_instrument", "propagator", "traces_sampler")
    for group in groups:
        found = [e for e in entry_points(group=f"opentelemetry_{group}") if e.name.startswith("acestep")]
        assert found, group
        assert all(callable(entry.load()) for entry in found)


def test_a_header_forces_a_trace_that_the_sampler_would_have_left_out(tmp_path):
    program = (
        "from opentelemetry import context, propagate\n"
        "song()\n"
        "context.attach(propagate.extract({'x-force-trace': 'true'}))\n"
        "song()\n"
    )
    sampling = {
        "OTEL_TRACES_SAMPLER": "acestep_forcible_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0",
        "OTEL_PROPAGATORS": "tracecontext,baggage,acestep_force",
    }
    with grpc_receiver() as received, service(tmp_path, program, received.endpoint, **sampling) as running:
        code, _ = running.end()
        assert code == 0, running.errors()
        assert received.span_names().count("generate_music") == 1
        assert received.span_names().count("acestep.dit.step") == 4


def test_it_can_be_switched_off_by_name(tmp_path):
    off = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "acestep"}
    with grpc_receiver() as received, service(tmp_path, "song()", received.endpoint, **off) as running:
        code, _ = running.end()
        assert code == 0, running.errors()
        assert received.span_names() == []


@pytest.mark.parametrize(
    ("variables_", "said"),
    [
        (
            {"OTEL_TRACES_SAMPLER": "acestep_forcible_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "abc"},
            "OTEL_TRACES_SAMPLER_ARG='abc' is not supported: give a share from 0 to 1",
        ),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.instance.id"}, "OTEL_RESOURCE_ATTRIBUTES: entry 1"),
        ({"OTEL_METRICS_EXEMPLAR_FILTER": "bogus"}, "OTEL_METRICS_EXEMPLAR_FILTER='bogus' is not supported"),
        ({"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "abc"}, "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT='abc' is not supported"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "api-key: PLANTED"}, "OTEL_EXPORTER_OTLP_HEADERS: entry 1"),
        ({"ACESTEP_OTEL_DETAIL": "deep"}, "ACESTEP_OTEL_DETAIL: 'deep' is not a detail level"),
        ({"OTEL_SERVICE_NAME": ""}, None),
    ],
)
def test_a_wrong_variable_is_one_warning_that_names_it_and_the_service_starts(variables_, said):
    environment = {**variables(None), **variables_}
    done = subprocess.run(
        [INSTRUMENT, sys.executable, "-c", "print('started')"], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "started\n")
    ours = [line for line in done.stderr.splitlines() if said is not None and line.startswith(said)]
    assert len(ours) == (said is not None), done.stderr
    assert "PLANTED" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "variable",
    [
        "OTEL_BSP_SCHEDULE_DELAY=0", "OTEL_BLRP_SCHEDULE_DELAY=0", "OTEL_METRIC_EXPORT_INTERVAL=0",
        "OTEL_BSP_MAX_QUEUE_SIZE=100", "OTEL_RESOURCE_ATTRIBUTES=service.instance.id=,service.name=",
        "OTEL_RESOURCE_ATTRIBUTES= , ", "OTEL_TRACES_EXPORTER= ", "OTEL_EXPORTER_OTLP_TIMEOUT=",
    ],
)  # fmt: skip
def test_a_legal_or_empty_value_that_the_sdk_refuses_works_and_is_delivered(variable, tmp_path):
    """N25, N4: empty is unset, and legal values work, as in the command line."""
    program = "from opentelemetry import trace\ntrace.get_tracer('t').start_span('seen').end()"
    name, _, value = variable.partition("=")
    with http_receiver() as received:
        environment = variables(received.endpoint, OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf") | {name: value}
        done = subprocess.run(
            [INSTRUMENT, sys.executable, "-c", program], env=environment, capture_output=True, text=True, cwd=tmp_path
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert received.span_names() == ["seen"]
    assert all(received.resource()[name].strip() for name in ("service.instance.id", "service.name"))
