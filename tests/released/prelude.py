"""Runs before every program of these tests, in the released package's environment."""
# ruff: noqa: E402, F401, I001

import inspect
import json
import logging
import sys
import tempfile
from pathlib import Path

from loguru import logger

logging.basicConfig(level=logging.WARNING)
logger.remove()

import torch
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from acestep_otel.instrumentor import AceStepInstrumentor

exporter, provider, instrumentor = InMemorySpanExporter(), TracerProvider(), AceStepInstrumentor()
provider.add_span_processor(SimpleSpanProcessor(exporter))
facts, scenarios = {}, {}

# Names are imported before anything is instrumented, as in a server that is instrumented late.
from acestep.handler import AceStepHandler
from acestep.inference import (
    GenerationConfig,
    GenerationParams,
    create_sample,
    format_sample,
    generate_music,
    understand_music,
)
from acestep.llm_inference import LLMHandler


def instrument():
    instrumentor.instrument(tracer_provider=provider, detail="step")


def load(variant="turbo"):
    """Both handlers, on the CPU."""
    dit, lm = AceStepHandler(), LLMHandler()
    checkpoints = Path.cwd() / "checkpoints"
    takes = inspect.signature(dit.initialize_service).parameters
    place = {"checkpoint_dir": str(checkpoints)} if "checkpoint_dir" in takes else {"project_root": str(Path.cwd())}
    status, done = dit.initialize_service(config_path=f"acestep-v15-{variant}", device="cpu", **place)
    assert done, status
    status, done = lm.initialize(str(checkpoints), lm_model_path="acestep-5Hz-lm-1.7B", backend="pt", device="cpu")
    assert done, status
    # A model with random weights seldom ends by itself.
    lm.llm.config.max_new_tokens = 40
    return dit, lm


def params(**changed):
    """A song of ten seconds whose metadata is all given."""
    given = {
        "caption": "a caption nobody may see",
        "lyrics": "words nobody may see",
        "duration": 10,
        "bpm": 120,
        "keyscale": "C major",
        "timesignature": "4",
        "vocal_language": "en",
        "inference_steps": 8,
        "thinking": False,
        "use_cot_metas": False,
        "use_cot_caption": False,
        "use_cot_language": False,
    }
    return GenerationParams(**(given | changed))


def one(**changed):
    return GenerationConfig(**({"batch_size": 1, "use_random_seed": False, "seeds": [1]} | changed))


def scenario(name):
    """What was recorded since the last one."""
    instrumentor.flush()
    scenarios[name] = [json.loads(span.to_json()) for span in exporter.get_finished_spans()]
    exporter.clear()


def report():
    print(json.dumps({"scenarios": scenarios, **facts}))
