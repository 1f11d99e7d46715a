"""Patches of the ``acestep`` engine, except its language model (``engine_language_model``).

A patch reads only the arguments and the result of a call: the engine keeps no counters for the tracing layer.
``docs/architecture.md`` states what the engine guarantees to an observer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from acestep_otel import semconv
from acestep_otel.patches import engine_language_model, engine_work
from acestep_otel.patches.messages import input_messages
from acestep_otel.patches.patcher import Patch
from acestep_otel.patches.song_settings import adapter_attributes, sampler_attributes
from acestep_otel.recording.call import (
    Call,
    LoadDefinition,
    ModelLoad,
    RequestDefinition,
    RequestStart,
    StageDefinition,
)
from acestep_otel.recording.redaction import file_names
from acestep_otel.recording.trace_tree import Attributes, AttributeValue, Stage
from acestep_otel.settings import Detail

if TYPE_CHECKING:
    from acestep.checkpoints import Models, ModelSelection
    from acestep.renderer.decoder import DecodedSongs
    from acestep.renderer.vae import TilePlan
    from acestep.types import GenerationRequest, GenerationResult


def is_imported() -> bool:
    """Whether the package ``acestep`` of this process is this engine; the released one has the same name."""
    package = sys.modules.get("acestep")
    return package is not None and PathFinder.find_spec("acestep.renderer", package.__path__) is not None


def _generation_start(call: Call, capture_content: bool) -> RequestStart:
    models: Models = call.instance.models
    request: GenerationRequest = call.arguments["request"]
    return RequestStart(
        device=models.device,
        attributes=_generation_attributes(models, request, capture_content),
        user_texts=(
            request.caption,
            request.lyrics,
            request.sampling.negative_prompt,
            *file_names(request.src_audio, request.reference_audio),
        ),
    )


def _generation_attributes(
    models: Models, request: GenerationRequest, capture_content: bool
) -> dict[str, AttributeValue]:
    renderer = models.renderer.models
    attributes: dict[str, AttributeValue] = {
        semconv.OPERATION_NAME: "generate_content",
        semconv.PROVIDER_NAME: "ace_step",
        semconv.REQUEST_MODEL: renderer.name,
        semconv.OUTPUT_TYPE: "music",
        semconv.REQUEST_CHOICE_COUNT: request.batch_size,
        semconv.TASK: request.task_type,
        semconv.THINKING: request.writes_audio_codes,
        semconv.BATCH_SIZE: request.batch_size,
        semconv.DIT_STEPS_REQUESTED: request.inference_steps,
        semconv.CAPTION_LENGTH: len(request.caption),
        semconv.LYRICS_LENGTH: len(request.lyrics),
        semconv.DEVICE: str(models.device),
        semconv.DTYPE: str(renderer.dtype).removeprefix("torch."),
        semconv.WEIGHTS: renderer.weights,
        semconv.OFFLOAD: models.placement.offload_to_cpu,
        semconv.OFFLOAD_DIT: models.placement.offload_dit_to_cpu,
        semconv.OFFLOAD_AUTOMATIC: models.placement.automatic_offload,
        semconv.QUANTIZATION: models.placement.quantization or "none",
        semconv.COMPILED: models.placement.compile,
    }
    # Names of adapters that do not exist are text of the caller.
    known = models.renderer.adapters
    asked = known.defaults if request.adapters is None else request.adapters
    attributes |= adapter_attributes(
        [(one.name, one.scale) for one in asked if one.name in known.names and one.scale != 0]
    )
    if request.duration is not None:
        attributes[semconv.AUDIO_DURATION_REQUESTED] = float(request.duration)
    if capture_content:
        attributes[semconv.CAPTION] = request.caption
        attributes[semconv.LYRICS] = request.lyrics
        attributes[semconv.INPUT_MESSAGES] = input_messages(request.caption, request.lyrics)
    return attributes


def _generation_result(_call: Call, result: GenerationResult) -> Attributes:
    effective = result.effective
    return {
        semconv.AUDIO_DURATION: effective.duration,
        semconv.DIT_STEPS: effective.steps,
        semconv.REQUEST_SEED: effective.seeds[0],
        semconv.RESPONSE_MODEL: effective.dit_model,
    }


def _saved_songs(result: GenerationResult) -> Sequence[Path]:
    return [song.path for song in result.songs if song.path is not None]


def _loads(field: str) -> Callable[[Call], ModelLoad]:
    """Reads the model that a field of the selection names."""

    def load(call: Call) -> ModelLoad:
        selection: ModelSelection = call.arguments["selection"]
        named = str(getattr(selection, field))
        model = Path(named).absolute().name
        # The path of a model or of an adapter may identify the user.
        paths = [path for adapter in selection.adapters for path in (adapter.path, adapter.path.absolute())]
        folders = [str(path.parent) for path in paths if path.parent != Path()]
        texts = (*(() if model == named else file_names(named)), *folders)
        return ModelLoad(model, call.arguments["device"], texts)

    return load


def _saved_files(_call: Call, _stage: Stage, songs: Any) -> Attributes:
    return {
        semconv.AUDIO_FILES: len(songs),
        semconv.AUDIO_BYTES: sum(song.path.stat().st_size for song in songs),
    }


def _tiling(call: Call) -> Attributes:
    plan: TilePlan = call.arguments["plan"]
    return {
        semconv.VAE_TILE_LENGTH: plan.tile_length,
        semconv.VAE_OVERLAP: plan.overlap,
        semconv.VAE_TILES: len(plan.tiles),
        semconv.LATENT_FRAMES: plan.frames,
    }


def _denoising(call: Call) -> Attributes:
    schedule, guidance, noise, sampler = (call.arguments[name] for name in ("schedule", "guidance", "noise", "sampler"))
    settings = None if sampler is None else sampler.settings
    return {
        **(
            {}
            if settings is None
            else sampler_attributes(settings.infer_method, settings.sampler_mode, settings.dcw_enabled)
        ),
        semconv.DIT_STEPS_REQUESTED: len(schedule.timesteps),
        semconv.DIT_SHIFT: float(schedule.shift),
        semconv.DIT_GUIDANCE_SCALE: 1.0 if guidance is None else float(guidance.scale),
        semconv.BATCH_SIZE: noise.shape[0],
        semconv.LATENT_FRAMES: noise.shape[1],
    }


def _denoised_steps(call: Call, loop: Stage, _latents: Any) -> Attributes:
    # Counted where steps are recorded one by one; below that level a loop that returned has run them all.
    steps = sum(child.name == semconv.DIT_STEP for child in loop.children)
    return {
        semconv.DIT_STEPS: steps or len(call.arguments["schedule"].timesteps),
        semconv.DIT_PATH: call.instance.velocity.path,
    }


def _denoise_step(call: Call) -> Attributes:
    return {
        semconv.DIT_STEP_INDEX: call.kwargs["step"].index,
        semconv.DIT_STEP_TIMESTEP: float(call.kwargs["step"].timestep),
        semconv.DIT_STEP_GUIDED: call.kwargs["projection"] is not None,
    }


def _decoding(call: Call) -> Attributes:
    latents = call.arguments["latents"]
    return {semconv.BATCH_SIZE: latents.shape[0], semconv.LATENT_FRAMES: latents.shape[1]}


def _decoded(_call: Call, _stage: Stage, decoded: DecodedSongs) -> Attributes:
    decoding = decoded.decoding
    return {
        semconv.VAE_RUNG: decoding.rung,
        semconv.VAE_TILE_LENGTH: decoding.tile_length,
        semconv.VAE_OVERLAP: decoding.overlap,
        semconv.VAE_TILES: decoding.tiles,
        semconv.VAE_ATTEMPTS: decoding.attempts,
    }


def _tile(call: Call) -> Attributes:
    tile = call.kwargs["tile"]
    start, stop = tile.window
    return {semconv.VAE_TILE_INDEX: tile.index, semconv.VAE_TILE_FRAMES: stop - start}


def _switched_to(call: Call) -> Attributes:
    return adapter_attributes([(adapter.name, adapter.scale) for adapter in call.arguments["adapters"]])


def _move(call: Call) -> Attributes:
    to_device = call.arguments["destination"] == call.instance.device
    return {
        semconv.OFFLOAD_MODEL: call.arguments["name"],
        semconv.OFFLOAD_DIRECTION: "to_device" if to_device else "to_host",
    }


PATCHES: Final = (
    *engine_work.PATCHES,
    Patch(
        "acestep.inference",
        "MusicPipeline.generate",
        RequestDefinition(semconv.GENERATE_MUSIC, _generation_start, _generation_result, files_after=_saved_songs),
    ),
    Patch(
        "acestep.inference",
        "MusicPipeline.save_songs",
        StageDefinition(
            semconv.AUDIO_SAVE,
            device_clock=False,
            attributes_before=lambda call: {semconv.AUDIO_FORMAT: call.arguments["audio_format"]},
            attributes_after=_saved_files,
        ),
    ),
    Patch("acestep.checkpoints", "load_renderer_models", LoadDefinition("renderer", _loads("dit"))),
    Patch("acestep.checkpoints", "start_planner", LoadDefinition("planner", _loads("lm"))),
    Patch("acestep.checkpoints", "load_audio_encoder_models", LoadDefinition("audio_encoder", _loads("dit"))),
    Patch(
        "acestep.renderer.renderer",
        "Renderer.condition",
        StageDefinition(
            semconv.CONDITION,
            tracks_memory=True,
            attributes_after=lambda _call, _stage, conditions: {
                semconv.LATENT_FRAMES: conditions.context_latents.shape[1]
            },
        ),
    ),
    # Inside acestep.condition, which tracks the memory peak of both.
    Patch(
        "acestep.renderer.renderer", "Renderer.encode", StageDefinition(semconv.VAE_ENCODE, attributes_before=_tiling)
    ),
    Patch(
        "acestep.renderer.adapters",
        "AdapterSet.switch",
        StageDefinition(semconv.ADAPTER_SWITCH, attributes_before=_switched_to),
    ),
    Patch(
        "acestep.renderer.renderer",
        "Renderer.denoise",
        StageDefinition(
            semconv.DIT, tracks_memory=True, attributes_before=_denoising, attributes_after=_denoised_steps
        ),
    ),
    Patch(
        "acestep.renderer.renderer",
        "Renderer.denoise_step",
        StageDefinition(semconv.DIT_STEP, detail=Detail.STEP, attributes_before=_denoise_step),
    ),
    Patch(
        "acestep.renderer.decoder",
        "VaeDecoder.decode",
        StageDefinition(semconv.VAE_DECODE, tracks_memory=True, attributes_before=_decoding, attributes_after=_decoded),
    ),
    Patch(
        "acestep.renderer.decoder",
        "VaeDecoder.decode_tile",
        StageDefinition(semconv.VAE_TILE, detail=Detail.STEP, attributes_before=_tile),
    ),
    Patch(
        "acestep.offloading",
        "ModelOffloader.move",
        StageDefinition(
            semconv.OFFLOAD_MOVE,
            attributes_before=_move,
            attributes_after=lambda _call, _stage, moved: {semconv.OFFLOAD_BYTES: moved},
        ),
    ),
    Patch(
        "acestep.renderer.audio_encoder",
        "AudioEncoder.encode",
        StageDefinition(semconv.VAE_ENCODE, tracks_memory=True, attributes_before=_tiling),
    ),
    Patch(
        "acestep.renderer.audio_encoder",
        "AudioEncoder.tokenize",
        StageDefinition(
            semconv.AUDIO_TOKENIZE,
            tracks_memory=True,
            attributes_before=lambda call: {semconv.LATENT_FRAMES: call.arguments["latents"].shape[1]},
            attributes_after=lambda _call, _stage, codes: {semconv.AUDIO_CODES_COUNT: len(codes)},
        ),
    ),
    *engine_language_model.PATCHES,
)
"""Every patch of the engine."""
