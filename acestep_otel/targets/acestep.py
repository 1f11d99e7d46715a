"""The seams of the ``acestep`` engine, and what each tells about its stage; those of its language model lie beside.

A wrapper reads the arguments and the result of a call, nothing else: the engine keeps no counters for the tracing
layer's sake.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep_otel import semconv
from acestep_otel.recording.call import Attributes, Call, RequestStart
from acestep_otel.recording.privacy import file_names
from acestep_otel.recording.recorder import StageRecorder
from acestep_otel.recording.stages import AttributeValue, Stage, never_raises
from acestep_otel.settings import Detail
from acestep_otel.targets import planner, songwriting, vllm
from acestep_otel.targets.seam import Seam, Wrapper

if TYPE_CHECKING:
    from acestep.checkpoints import Models
    from acestep.renderer.vae import TilePlan
    from acestep.types import GenerationRequest, GenerationResult, VaeDecoding


def is_imported() -> bool:
    """Whether the package ``acestep`` of this process is this engine; the released one has the same name."""
    package = sys.modules.get("acestep")
    return package is not None and PathFinder.find_spec("acestep.renderer", package.__path__) is not None


def seams(layer: StageRecorder) -> list[Seam]:
    """Every seam of the engine, bound to a layer."""
    return [
        Seam("acestep.inference", "MusicPipeline.generate", _request(layer)),
        Seam("acestep.inference", "MusicPipeline.save_songs", _audio_save(layer)),
        Seam("acestep.checkpoints", "load_renderer_models", _load(layer, "renderer", "dit")),
        Seam("acestep.checkpoints", "start_planner", _load(layer, "planner", "lm")),
        Seam("acestep.checkpoints", "load_audio_encoder_models", _load(layer, "audio_encoder", "dit")),
        Seam("acestep.renderer.renderer", "Renderer.condition", _condition(layer)),
        # Inside acestep.condition, whose memory peak is the stage's.
        Seam("acestep.renderer.renderer", "Renderer.encode", _vae_encode(layer, tracks_memory=False)),
        Seam("acestep.renderer.renderer", "Renderer.denoise", _denoise(layer)),
        Seam("acestep.renderer.renderer", "Renderer.denoise_step", _denoise_step(layer)),
        Seam("acestep.renderer.decoder", "VaeDecoder.decode", _vae_decode(layer)),
        Seam("acestep.renderer.decoder", "VaeDecoder.decode_tile", _vae_tile(layer)),
        Seam("acestep.offloading", "ModelOffloader.move", _move(layer)),
        Seam("acestep.renderer.audio_encoder", "AudioEncoder.encode", _vae_encode(layer, tracks_memory=True)),
        Seam("acestep.renderer.audio_encoder", "AudioEncoder.tokenize", _audio_tokenize(layer)),
        *planner.seams(layer),
        *songwriting.seams(layer),
        *vllm.seams(layer),
    ]


def _request(layer: StageRecorder) -> Wrapper:
    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(wrapped, instance, args, kwargs)
        start = _request_start(call, layer.settings.capture_content)
        return call.run() if start is None else layer.request(semconv.GENERATE_MUSIC, call, start, _result_attributes)

    return wrapper


@never_raises
def _request_start(call: Call, capture_content: bool) -> RequestStart:
    models: Models = call.instance.models
    request: GenerationRequest = call.arguments["request"]
    return RequestStart(
        device=models.device,
        attributes=_request_attributes(models, request, capture_content),
        user_texts=(
            request.caption,
            request.lyrics,
            request.sampling.negative_prompt,
            *file_names(request.src_audio, request.reference_audio),
        ),
    )


def _request_attributes(models: Models, request: GenerationRequest, capture_content: bool) -> dict[str, AttributeValue]:
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
    if request.duration is not None:
        attributes[semconv.AUDIO_DURATION_REQUESTED] = float(request.duration)
    if capture_content:
        attributes[semconv.CAPTION] = request.caption
        attributes[semconv.LYRICS] = request.lyrics
    return attributes


def _result_attributes(result: GenerationResult) -> Attributes:
    return {semconv.AUDIO_DURATION: result.effective.duration, semconv.DIT_STEPS: result.effective.steps}


def _load(layer: StageRecorder, role: str, field: str) -> Wrapper:
    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(wrapped, instance, args, kwargs)
        named = str(getattr(call.arguments["selection"], field))
        model = Path(named).absolute().name
        # A model may be named by a path, which is nobody's business but the user's.
        private = () if model == named else tuple(file_names(named))
        return layer.load(call, model=model, role=role, device=call.arguments["device"], user_texts=private)

    return wrapper


def _audio_save(layer: StageRecorder) -> Wrapper:
    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(wrapped, instance, args, kwargs)
        return layer.stage(
            semconv.AUDIO_SAVE,
            call,
            device_clock=False,
            known=lambda: {semconv.AUDIO_FORMAT: call.arguments["audio_format"]},
            found=lambda _, songs: {
                semconv.AUDIO_FILES: len(songs),
                semconv.AUDIO_BYTES: sum(song.path.stat().st_size for song in songs),
            },
        )

    return wrapper


def _condition(layer: StageRecorder) -> Wrapper:
    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(wrapped, instance, args, kwargs)
        return layer.stage(
            semconv.CONDITION,
            call,
            tracks_memory=True,
            found=lambda _, conditions: {semconv.LATENT_FRAMES: conditions.context_latents.shape[1]},
        )

    return wrapper


def _vae_encode(layer: StageRecorder, *, tracks_memory: bool) -> Wrapper:
    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(wrapped, instance, args, kwargs)

        return layer.stage(
            semconv.VAE_ENCODE,
            call,
            tracks_memory=tracks_memory,
            known=lambda: _tiling(call.arguments["plan"], recordings=1),
        )

    return wrapper


def _audio_tokenize(layer: StageRecorder) -> Wrapper:
    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(wrapped, instance, args, kwargs)
        return layer.stage(
            semconv.AUDIO_TOKENIZE,
            call,
            tracks_memory=True,
            known=lambda: {semconv.LATENT_FRAMES: call.arguments["latents"].shape[1]},
            found=lambda _, codes: {semconv.AUDIO_CODES_COUNT: len(codes)},
        )

    return wrapper


def _denoise(layer: StageRecorder) -> Wrapper:
    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(wrapped, instance, args, kwargs)

        def known() -> Attributes:
            schedule, guidance, noise = call.arguments["schedule"], call.arguments["guidance"], call.arguments["noise"]
            return {
                semconv.DIT_STEPS_REQUESTED: len(schedule.timesteps),
                semconv.DIT_SHIFT: float(schedule.shift),
                semconv.DIT_GUIDANCE_SCALE: 1.0 if guidance is None else float(guidance.scale),
                semconv.BATCH_SIZE: noise.shape[0],
                semconv.LATENT_FRAMES: noise.shape[1],
            }

        def found(stage: Stage, _: Any) -> Attributes:
            # Counted where steps are recorded one by one; below that level a loop that returned has run them all.
            steps = sum(child.name == semconv.DIT_STEP for child in stage.children)
            return {semconv.DIT_STEPS: steps or len(call.arguments["schedule"].timesteps)}

        return layer.stage(semconv.DIT, call, tracks_memory=True, known=known, found=found)

    return wrapper


def _denoise_step(layer: StageRecorder) -> Wrapper:
    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return layer.stage(
            semconv.DIT_STEP,
            Call(wrapped, instance, args, kwargs),
            detail=Detail.STEP,
            known=lambda: {
                semconv.DIT_STEP_INDEX: kwargs["step"].index,
                semconv.DIT_STEP_TIMESTEP: float(kwargs["step"].timestep),
                semconv.DIT_STEP_GUIDED: kwargs["projection"] is not None,
            },
        )

    return wrapper


def _vae_decode(layer: StageRecorder) -> Wrapper:
    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(wrapped, instance, args, kwargs)

        def known() -> Attributes:
            latents = call.arguments["latents"]
            return {semconv.BATCH_SIZE: latents.shape[0], semconv.LATENT_FRAMES: latents.shape[1]}

        def found(_: Stage, decoded: tuple[Any, VaeDecoding]) -> Attributes:
            decoding = decoded[1]
            return {
                semconv.VAE_RUNG: decoding.rung,
                semconv.VAE_TILE_LENGTH: decoding.tile_length,
                semconv.VAE_OVERLAP: decoding.overlap,
                semconv.VAE_TILES: decoding.tiles,
                semconv.VAE_ATTEMPTS: decoding.attempts,
            }

        return layer.stage(semconv.VAE_DECODE, call, tracks_memory=True, known=known, found=found)

    return wrapper


def _move(layer: StageRecorder) -> Wrapper:
    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(wrapped, instance, args, kwargs)
        return layer.stage(
            semconv.OFFLOAD_MOVE,
            call,
            known=lambda: {
                semconv.OFFLOAD_MODEL: call.arguments["name"],
                semconv.OFFLOAD_DIRECTION: (
                    "to_device" if call.arguments["destination"] == instance.device else "to_host"
                ),
            },
            found=lambda _, moved: {semconv.OFFLOAD_BYTES: moved},
        )

    return wrapper


def _tiling(plan: TilePlan, *, recordings: int) -> Attributes:
    return {
        semconv.VAE_TILE_LENGTH: plan.tile_length,
        semconv.VAE_OVERLAP: plan.overlap,
        semconv.VAE_TILES: recordings * len(plan.tiles),
        semconv.LATENT_FRAMES: plan.frames,
    }


def _vae_tile(layer: StageRecorder) -> Wrapper:
    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        def known() -> Attributes:
            start, stop = kwargs["tile"].window
            return {semconv.VAE_TILE_INDEX: kwargs["tile"].index, semconv.VAE_TILE_FRAMES: stop - start}

        return layer.stage(semconv.VAE_TILE, Call(wrapped, instance, args, kwargs), detail=Detail.STEP, known=known)

    return wrapper
