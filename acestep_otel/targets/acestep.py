"""The seams of the ``acestep`` engine, and what each tells about its stage.

A wrapper reads the arguments and the result of a call, nothing else: the engine keeps no counters for the tracing
layer's sake.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from acestep_otel import semconv
from acestep_otel.recording.calibration import CALIBRATION
from acestep_otel.recording.layer import Attributes, Call, TracingLayer
from acestep_otel.recording.phase import PhaseRecord
from acestep_otel.recording.stages import AttributeValue, Stage, current_recording, never_raises
from acestep_otel.settings import Detail
from acestep_otel.targets.seam import Seam, Wrapper

if TYPE_CHECKING:
    from acestep.checkpoints import Models
    from acestep.planner.backends import PhaseTokens
    from acestep.types import GenerationRequest, GenerationResult


def seams(layer: TracingLayer) -> list[Seam]:
    """Every seam of the engine, bound to a layer."""
    return [
        Seam("acestep.inference", "_generate", _request(layer)),
        Seam("acestep.inference", "save_songs", _audio_save(layer)),
        Seam("acestep.checkpoints", "load_renderer_models", _load(layer, "renderer", "dit")),
        Seam("acestep.checkpoints", "load_language_model", _load(layer, "planner", "lm")),
        Seam("acestep.planner.planner", "Planner.plan", _plan(layer)),
        Seam("acestep.planner.planner", "Planner.reason", _phase(layer, semconv.LM_COT)),
        Seam("acestep.planner.planner", "Planner.compose_codes", _phase(layer, semconv.LM_CODES)),
        Seam("acestep.planner.backends.pt", "PtBackend.prefill", _prefill),
        Seam("acestep.planner.backends.pt", "PtBackend.decode", _decode_pass),
        Seam("acestep.planner.backends.pt", "PtBackend.constrain", _constrained),
        Seam("acestep.planner.backends.pt", "PtBackend.accept", _constrained),
        Seam("acestep.renderer.renderer", "Renderer.condition", _condition(layer)),
        Seam("acestep.renderer.renderer", "Renderer.denoise", _denoise(layer)),
        Seam("acestep.renderer.renderer", "Renderer.denoise_step", _denoise_step(layer)),
        Seam("acestep.renderer.renderer", "Renderer.decode", _vae_decode(layer)),
        Seam("acestep.renderer.renderer", "Renderer.decode_tile", _vae_tile(layer)),
    ]
