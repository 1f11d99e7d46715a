"""``opentelemetry-instrument python service.py``: a service of the engine, traced without a line of code."""

import os
import subprocess
import sys

from tests.receivers import http_receiver
from tests.services import INSTRUMENT, ROOT, variables

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

    groups = ("instrumentor", "post_instrument", "propagator", "traces_sampler")
    for group in groups:
        found = [e for e in entry_points(group=f"opentelemetry_{group}") if e.name.startswith("acestep")]
        assert found, group
        assert all(callable(entry.load()) for entry in found)
