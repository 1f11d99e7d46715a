"""The seams of the ``acestep`` engine, and what each tells about its stage.

A wrapper reads the arguments and the result of a call, nothing else: the engine keeps no counters for the tracing
layer's sake.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from acestep_otel import semconv
from acestep_otel.recording.calibration import CALIBRATION
from acestep_otel.recording.layer import Attributes, Call, RequestStart, TracingLayer
from acestep_otel.recording.phase import PhaseRecord
from acestep_otel.recording.stages import AttributeValue, RequestRecording, Stage, current_recording, never_raises
from acestep_otel.settings import Detail
from acestep_otel.targets.seam import Seam, Wrapper

if TYPE_CHECKING:
    from acestep.checkpoints import Models
    from acestep.planner.backends import PhaseTokens
    from acestep.planner.planner import Planner
    from acestep.renderer.vae import TilePlan
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
        Seam("acestep.renderer.renderer", "Renderer.encode", _vae_encode(layer)),
        Seam("acestep.renderer.renderer", "Renderer.denoise", _denoise(layer)),
        Seam("acestep.renderer.renderer", "Renderer.denoise_step", _denoise_step(layer)),
        Seam("acestep.renderer.renderer", "Renderer.decode", _vae_decode(layer)),
        Seam("acestep.renderer.renderer", "Renderer.decode_tile", _vae_tile(layer)),
    ]


def _request(layer: TracingLayer) -> Wrapper:
    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(wrapped, instance, args, kwargs)
        start = _request_start(call, layer.settings.capture_content)
        return call.run() if start is None else layer.request(semconv.GENERATE_MUSIC, call, start, _result_attributes)

    return wrapper


@never_raises
def _request_start(call: Call, capture_content: bool) -> RequestStart:
    models: Models = call.arguments["models"]
    request: GenerationRequest = call.arguments["request"]
    return RequestStart(
        device=models.device,
        attributes=_request_attributes(models, request, capture_content),
        user_texts=(request.caption, request.lyrics),
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
    }
    if request.duration is not None:
        attributes[semconv.AUDIO_DURATION_REQUESTED] = float(request.duration)
    if capture_content:
        attributes[semconv.CAPTION] = request.caption
        attributes[semconv.LYRICS] = request.lyrics
    return attributes


def _result_attributes(result: GenerationResult) -> Attributes:
    return {semconv.AUDIO_DURATION: result.effective.duration, semconv.DIT_STEPS: result.effective.steps}


def _load(layer: TracingLayer, role: str, field: str) -> Wrapper:
    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(wrapped, instance, args, kwargs)
        model = str(getattr(call.arguments["selection"], field))
        return layer.load(call, model=model, role=role, device=call.arguments["device"])

    return wrapper


def _audio_save(layer: TracingLayer) -> Wrapper:
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


def _plan(layer: TracingLayer) -> Wrapper:
    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(wrapped, instance, args, kwargs)

        def known() -> Attributes:
            sampling = call.arguments["request"].sampling
            attributes = _planner_attributes(instance) | {
                semconv.LM_BACKEND: instance.backend.name,
                semconv.LM_GUIDANCE_SCALE: float(sampling.guidance_scale),
                semconv.REQUEST_TEMPERATURE: float(sampling.temperature),
                semconv.REQUEST_TOP_P: float(sampling.top_p),
            }
            return attributes | ({semconv.REQUEST_TOP_K: sampling.top_k} if sampling.top_k else {})

        return layer.stage(
            semconv.LM,
            call,
            device_clock=False,
            known=known,
            found=lambda _, plan: _summed_tokens([phase for phase in (plan.reasoned, plan.composed) if phase]),
        )

    return wrapper


def _planner_attributes(planner: Planner) -> dict[str, AttributeValue]:
    return {
        semconv.OPERATION_NAME: "generate_content",
        semconv.PROVIDER_NAME: "ace_step",
        semconv.REQUEST_MODEL: planner.model_name,
    }


def _summed_tokens(phases: Sequence[PhaseTokens]) -> Attributes:
    return {
        semconv.USAGE_INPUT_TOKENS: sum(phase.prompt_tokens for phase in phases),
        semconv.USAGE_OUTPUT_TOKENS: sum(phase.sampled_tokens + phase.forced_tokens for phase in phases),
        semconv.LM_SAMPLED_TOKENS: sum(phase.sampled_tokens for phase in phases),
        semconv.LM_FORCED_TOKENS: sum(phase.forced_tokens for phase in phases),
        semconv.LM_UNCONDITIONAL_TOKENS: sum(phase.unconditional_tokens for phase in phases),
        semconv.LM_FORWARDS: sum(phase.forwards for phase in phases),
    }


def _phase(layer: TracingLayer, name: str) -> Wrapper:
    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(wrapped, instance, args, kwargs)

        def known() -> Attributes:
            return _planner_attributes(instance) | {
                semconv.LM_CONSTRAINED: name == semconv.LM_COT and call.arguments["request"].use_constrained_decoding
            }

        def found(_: Stage, tokens: PhaseTokens) -> Attributes:
            attributes = dict(_summed_tokens([tokens]))
            share = CALIBRATION.share_of(instance.backend, len(tokens.ids))
            if tokens.unconditional_tokens and share is not None:
                attributes |= {semconv.LM_CFG_SHARE: share.decode, semconv.LM_CFG_PREFILL_SHARE: share.prefill}
            return attributes

        return layer.stage(
            name, call, device_clock=False, tracks_memory=True, phase=PhaseRecord(), known=known, found=found
        )

    return wrapper


def _running_phase() -> tuple[RequestRecording, PhaseRecord] | None:
    recording = current_recording()
    if recording is None or recording.innermost.phase is None:
        return None
    return recording, recording.innermost.phase


def _prefill(wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    running = _running_phase()
    if running is None:
        return wrapped(*args, **kwargs)
    recording, phase = running
    start = recording.clock.mark()
    result = wrapped(*args, **kwargs)
    phase.prefills.append((start, recording.clock.mark()))
    return result


def _decode_pass(wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    running = _running_phase()
    result = wrapped(*args, **kwargs)
    if running is not None:
        recording, phase = running
        phase.passes.append(recording.clock.mark())
    return result


def _constrained(wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    running = _running_phase()
    if running is None:
        return wrapped(*args, **kwargs)
    start_ns = time.perf_counter_ns()
    result = wrapped(*args, **kwargs)
    running[1].constrained_ns += time.perf_counter_ns() - start_ns
    return result


def _condition(layer: TracingLayer) -> Wrapper:
    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(wrapped, instance, args, kwargs)
        return layer.stage(
            semconv.CONDITION,
            call,
            tracks_memory=True,
            found=lambda _, conditions: {semconv.LATENT_FRAMES: conditions.context_latents.shape[1]},
        )

    return wrapper


def _vae_encode(layer: TracingLayer) -> Wrapper:
    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(wrapped, instance, args, kwargs)

        return layer.stage(semconv.VAE_ENCODE, call, known=lambda: _tiling(call.arguments["plan"], recordings=1))

    return wrapper


def _denoise(layer: TracingLayer) -> Wrapper:
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


def _denoise_step(layer: TracingLayer) -> Wrapper:
    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return layer.stage(
            semconv.DIT_STEP,
            Call(wrapped, instance, args, kwargs),
            detail=Detail.STEP,
            known=lambda: {
                semconv.DIT_STEP_INDEX: kwargs["index"],
                semconv.DIT_STEP_TIMESTEP: float(kwargs["timestep"]),
                semconv.DIT_STEP_GUIDED: kwargs.get("projection") is not None,
            },
        )

    return wrapper


def _vae_decode(layer: TracingLayer) -> Wrapper:
    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(wrapped, instance, args, kwargs)

        def known() -> Attributes:
            plan, latents = call.arguments["plan"], call.arguments["latents"]
            return {
                **_tiling(plan, recordings=latents.shape[0]),
                semconv.VAE_RUNG: "cpu" if instance.models.device.type == "cpu" else "gpu",
                semconv.BATCH_SIZE: latents.shape[0],
            }

        return layer.stage(semconv.VAE_DECODE, call, tracks_memory=True, known=known)

    return wrapper


def _tiling(plan: TilePlan, *, recordings: int) -> Attributes:
    return {
        semconv.VAE_TILE_LENGTH: plan.tile_length,
        semconv.VAE_OVERLAP: plan.overlap,
        semconv.VAE_TILES: recordings * len(plan.tiles),
        semconv.LATENT_FRAMES: plan.frames,
    }


def _vae_tile(layer: TracingLayer) -> Wrapper:
    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        def known() -> Attributes:
            start, stop = kwargs["tile"].window
            return {semconv.VAE_TILE_INDEX: kwargs["index"], semconv.VAE_TILE_FRAMES: stop - start}

        return layer.stage(semconv.VAE_TILE, Call(wrapped, instance, args, kwargs), detail=Detail.STEP, known=known)

    return wrapper
