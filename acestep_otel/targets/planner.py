"""The seams of the engine's language model: planning and songwriting, their phases, and the backend's passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from acestep_otel import semconv
from acestep_otel.recording.calibration import CALIBRATION
from acestep_otel.recording.call import Attributes, Call
from acestep_otel.recording.clock import Mark
from acestep_otel.recording.phase import PhaseRecord
from acestep_otel.recording.recorder import StageRecorder
from acestep_otel.recording.stages import AttributeValue, RequestRecording, Stage, never_raises, running_phase
from acestep_otel.targets.seam import Seam, Wrapper

if TYPE_CHECKING:
    from acestep.planner.backends import PhaseTokens, PlannerBackend
    from acestep.planner.planner import Planner
    from acestep.planner.songwriter import Songwriter


_BACKENDS: Final = (
    ("acestep.planner.backends.pt", "PtBackend"),
    ("acestep.planner.backends.vllm.backend", "VllmBackend"),
    ("acestep.planner.backends.mlx.backend", "MlxBackend"),
)


def seams(layer: StageRecorder) -> list[Seam]:
    """Every seam of the language model, bound to a layer."""
    return [
        Seam("acestep.planner.planner", "Planner.plan", _planning(layer)),
        Seam("acestep.planner.planner", "Planner.reason", _phase(layer, semconv.LM_COT)),
        Seam("acestep.planner.planner", "Planner.compose_codes", _phase(layer, semconv.LM_CODES)),
        Seam("acestep.planner.songwriter", "Songwriter.write", _planning(layer)),
        Seam("acestep.planner.songwriter", "Songwriter.reason", _phase(layer, semconv.LM_COT)),
        Seam("acestep.planner.songwriter", "Songwriter.write_lyrics", _phase(layer, semconv.LM_LYRICS)),
        *(
            Seam(module, f"{backend}.{method}", wrapper)
            for module, backend in _BACKENDS
            for method, wrapper in _BACKEND_SEAMS
        ),
    ]


def _planning(layer: StageRecorder) -> Wrapper:
    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(wrapped, instance, args, kwargs)

        def known() -> Attributes:
            sampling = call.arguments["request"].sampling
            attributes = _model_attributes(instance) | {
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
            found=lambda _, written: {**_summed_tokens(written.phases), **_decode_path(instance.backend)},
        )

    return wrapper


def _model_attributes(planner: Planner | Songwriter) -> dict[str, AttributeValue]:
    return {
        semconv.OPERATION_NAME: "generate_content",
        semconv.PROVIDER_NAME: "ace_step",
        semconv.REQUEST_MODEL: planner.model_name,
    }


def _decode_path(backend: PlannerBackend[Any]) -> Attributes:
    """Known after the run: the first pass of a process decides it."""
    path = getattr(backend, "decode_path", None)
    return {} if path is None else {semconv.LM_DECODE_PATH: path}


def _summed_tokens(phases: Sequence[PhaseTokens]) -> Attributes:
    return {
        semconv.USAGE_INPUT_TOKENS: sum(phase.prompt_tokens for phase in phases),
        semconv.USAGE_CACHE_READ_INPUT_TOKENS: sum(phase.reused_tokens for phase in phases),
        semconv.USAGE_OUTPUT_TOKENS: sum(phase.sampled_tokens + phase.forced_tokens for phase in phases),
        semconv.LM_SAMPLED_TOKENS: sum(phase.sampled_tokens for phase in phases),
        semconv.LM_FORCED_TOKENS: sum(phase.forced_tokens for phase in phases),
        semconv.LM_UNCONDITIONAL_TOKENS: sum(phase.unconditional_tokens for phase in phases),
        semconv.LM_FORWARDS: sum(phase.forwards for phase in phases),
    }


def _engine_times(tokens: PhaseTokens) -> Attributes:
    """What an engine measured by itself, beside the layer's own figures."""
    times = tokens.engine_times
    if times is None:
        return {}
    return {
        semconv.LM_ENGINE_QUEUE_DURATION: times.queue,
        semconv.LM_ENGINE_TIME_TO_FIRST_TOKEN: times.time_to_first_token,
        semconv.LM_ENGINE_PREFILL_DURATION: times.prefill,
        semconv.LM_ENGINE_DECODE_DURATION: times.decode,
    }


def _phase(layer: StageRecorder, name: str) -> Wrapper:
    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(wrapped, instance, args, kwargs)

        def known() -> Attributes:
            return _model_attributes(instance) | {
                semconv.LM_CONSTRAINED: name == semconv.LM_COT and call.arguments["request"].use_constrained_decoding
            }

        def found(_: Stage, tokens: PhaseTokens) -> Attributes:
            attributes = {**_summed_tokens([tokens]), **_engine_times(tokens)}
            share = CALIBRATION.share_of(instance.backend, len(tokens.ids))
            if tokens.unconditional_tokens and share is not None:
                attributes |= {semconv.LM_CFG_SHARE: share.decode, semconv.LM_CFG_PREFILL_SHARE: share.prefill}
            return attributes

        return layer.stage(
            name, call, device_clock=False, tracks_memory=True, phase=PhaseRecord(), known=known, found=found
        )

    return wrapper


@never_raises
def _mark(recording: RequestRecording) -> Mark:
    return recording.clock.mark()


def _prefill(wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    running = running_phase()
    if running is None:
        return wrapped(*args, **kwargs)
    recording, phase = running
    start = _mark(recording)
    result = wrapped(*args, **kwargs)
    end = _mark(recording)
    if start is not None and end is not None:
        phase.prefills.append((start, end))
    return result


def _decode_pass(wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    running = running_phase()
    result = wrapped(*args, **kwargs)
    if running is not None:
        recording, phase = running
        if (mark := _mark(recording)) is not None:
            phase.passes.append(mark)
    return result


def _constrained(wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    running = running_phase()
    if running is None:
        return wrapped(*args, **kwargs)
    start_ns = time.perf_counter_ns()
    result = wrapped(*args, **kwargs)
    running[1].constrained_ns += time.perf_counter_ns() - start_ns
    return result


_BACKEND_SEAMS: Final = (
    ("prefill", _prefill),
    ("decode", _decode_pass),
    ("constrain", _constrained),
    ("accept", _constrained),
)
"""Methods that every backend has for its passes and for the grammar."""
