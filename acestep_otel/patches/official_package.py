"""Patches of the released package ``ace-step`` 1.5, which calls itself ``acestep`` too.

Its handler is one class in the first releases and a set of mixins later; both end in ``AceStepHandler``, where the
names are looked up. What belongs to the checkpoint's own code (the transformer) has no class that could be named: it
is wrapped on the loaded object, for as long as a request runs. A name that a version lacks turns off one span.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final
from weakref import WeakKeyDictionary

from acestep_otel import semconv
from acestep_otel.patches.patcher import CustomWrapper, Patch, TemporaryPatches, Wrapper, device_named
from acestep_otel.recording.call import Call, RequestDefinition, RequestStart, StageDefinition, StageRecorder
from acestep_otel.recording.redaction import file_names
from acestep_otel.recording.request_tracer import RequestTracer
from acestep_otel.recording.trace_tree import (
    Attributes,
    AttributeValue,
    Stage,
    current_recording,
    inside_request,
    never_raises,
    running_phase,
    take_over,
)
from acestep_otel.settings import Detail

_HANDLER: Final = "acestep.handler"
_LANGUAGE_MODEL: Final = "acestep.llm_inference"
_TEXTS: Final = {"query": semconv.QUERY, "caption": semconv.CAPTION, "lyrics": semconv.LYRICS}
_LENGTHS: Final = {
    "query": semconv.QUERY_LENGTH,
    "caption": semconv.CAPTION_LENGTH,
    "lyrics": semconv.LYRICS_LENGTH,
}


class GenerationFailed(Exception):
    """A result that says it failed. Its message, which may quote the request, is left out."""


def patches(tracer: RequestTracer) -> list[Patch]:
    """Every patch of the package, bound to a tracer."""
    handler = _Handler(tracer)
    return [
        Patch("acestep.inference", "generate_music", _SONG),
        Patch("acestep.inference", "understand_music", _text_request(semconv.UNDERSTAND_MUSIC)),
        Patch("acestep.inference", "create_sample", _text_request(semconv.CREATE_SAMPLE)),
        Patch("acestep.inference", "format_sample", _text_request(semconv.FORMAT_SAMPLE)),
        Patch(_HANDLER, "AceStepHandler.generate_music", handler.generate_music),
        Patch(_HANDLER, "AceStepHandler.service_generate", handler.service_generate),
        Patch(_HANDLER, "AceStepHandler._decode_generate_music_pred_latents", handler.decode, optional=True),
        Patch(_HANDLER, "AceStepHandler.tiled_decode", handler.decode),
        Patch(_LANGUAGE_MODEL, "LLMHandler.generate_with_stop_condition", _PLANNING),
        Patch(_LANGUAGE_MODEL, "LLMHandler.understand_audio_from_codes", _PLANNING),
        Patch(_LANGUAGE_MODEL, "LLMHandler.create_sample_from_query", _PLANNING),
        Patch(_LANGUAGE_MODEL, "LLMHandler.format_sample_from_input", _PLANNING),
        Patch(_LANGUAGE_MODEL, "LLMHandler.generate_from_formatted_prompt", CustomWrapper(_phase)),
        Patch("nanovllm.engine.llm_engine", "LLMEngine.step", _engine_step),
    ]


def _failure(result: Any) -> BaseException | None:
    return None if result.success else GenerationFailed()


def _song_start(call: Call, capture_content: bool) -> RequestStart:
    handler, params, config = (call.arguments[name] for name in ("dit_handler", "params", "config"))
    attributes: dict[str, AttributeValue] = {
        **_common(handler),
        semconv.REQUEST_MODEL: _model(handler, "acestep-v15"),
        semconv.OUTPUT_TYPE: "music",
        semconv.REQUEST_CHOICE_COUNT: config.batch_size,
        semconv.BATCH_SIZE: config.batch_size,
        semconv.TASK: params.task_type,
        semconv.THINKING: bool(params.thinking),
        semconv.DIT_STEPS_REQUESTED: params.inference_steps,
        **_written({"caption": params.caption, "lyrics": params.lyrics}, capture_content),
    }
    if params.duration and params.duration > 0:
        attributes[semconv.AUDIO_DURATION_REQUESTED] = float(params.duration)
    # Not in all versions.
    others = (str(getattr(params, name, "")) for name in ("instruction", "lm_negative_prompt"))
    texts = (params.caption, params.lyrics, *others, *file_names(params.src_audio, params.reference_audio))
    return RequestStart(device_named(str(handler.device)), attributes, texts)


def _text_request(span: str) -> RequestDefinition:
    return RequestDefinition(span, _text_start, failure=_failure)


def _text_start(call: Call, capture_content: bool) -> RequestStart:
    handler = call.arguments["llm_handler"]
    written = {text: str(call.arguments[text]) for text in _TEXTS if text in call.arguments}
    attributes = {
        **_common(handler),
        semconv.REQUEST_MODEL: _model(handler, "acestep-5Hz-lm"),
        semconv.OUTPUT_TYPE: "text",
        **_written(written, capture_content),
    }
    return RequestStart(device_named(str(handler.device)), attributes, tuple(written.values()))


def _made(_call: Call, result: Any) -> Attributes:
    if not result.audios:
        return {}
    first = result.audios[0]
    return {semconv.AUDIO_DURATION: first["tensor"].shape[-1] / float(first["sample_rate"])}


class _Handler:
    """The patches of ``AceStepHandler``, which share what they know about running requests."""

    def __init__(self, tracer: RequestTracer) -> None:
        self._tracer = tracer
        self._methods = TemporaryPatches()
        self._contexts: WeakKeyDictionary[Any, list[contextvars.Context]] = WeakKeyDictionary()

    def generate_music(
        self, wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The renderer's part of a request; later versions run it in a thread that knows nothing of its caller."""
        if not inside_request():
            return wrapped(*args, **kwargs)
        context = contextvars.copy_context()
        running = self._contexts.setdefault(instance, [])
        running.append(context)
        try:
            with self._methods.wrapped(getattr(instance, "vae", None), "decode", self._decode_call):
                return wrapped(*args, **kwargs)
        finally:
            running.remove(context)

    def service_generate(
        self, wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Conditioning, up to the transformer's first call, and the diffusion loop from there on."""

        def run() -> Any:
            self._tracer.begin(_CONDITION)
            decoder = getattr(getattr(instance, "model", None), "decoder", None)
            with self._methods.wrapped(decoder, "forward", self._denoise_step):
                result = wrapped(*args, **kwargs)
            self._tracer.end(semconv.CONDITION)
            self._tracer.end(semconv.DIT, lambda loop: {semconv.DIT_STEPS: len(loop.children)} if loop.children else {})
            return result

        def run_for_caller() -> Any:
            take_over()
            return run()

        callers = self._contexts.get(instance, [])
        # With two callers at once the owner of the thread is unknown: no span rather than one in the wrong trace.
        if inside_request() or len(callers) != 1:
            return run()
        # A context cannot be entered twice, so the thread gets a copy of its caller's.
        return callers[0].copy().run(run_for_caller)

    def decode(self, wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The decode of all tiles; of nested ones the outermost counts."""
        call = Call(wrapped, instance, args, kwargs)
        return call.run() if _running(semconv.VAE_DECODE) is not None else self._tracer.stage(_VAE_DECODE, call)

    def _decode_call(
        self, wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        definition = _VAE_DECODE if _running(semconv.VAE_DECODE) is None else _VAE_TILE
        return self._tracer.stage(definition, Call(wrapped, instance, args, kwargs))

    def _denoise_step(
        self, wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self._tracer.end(semconv.CONDITION)
        self._tracer.begin(_DIT)
        return self._tracer.stage(_DIT_STEP, Call(wrapped, instance, args, kwargs))


def _running(name: str) -> Stage | None:
    recording = current_recording()
    return None if recording is None else recording.running(name)


def _position(loop: str, attribute: str, _call: Call) -> Attributes:
    """Index of a step or tile: the stage itself is the last child of its loop."""
    running = _running(loop)
    return {} if running is None else {attribute: len(running.children) - 1}


def _count(attribute: str, _call: Call, stage: Stage, _result: Any) -> Attributes:
    return {attribute: len(stage.children)} if stage.children else {}


def _lm_attributes(call: Call) -> Attributes:
    return _language_model(call.instance)


def _phase(recorder: StageRecorder) -> Wrapper:
    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(wrapped, instance, args, kwargs)
        name = _phase_name(call) if current_recording() is not None else None
        return call.run() if name is None else recorder.stage(_PHASES[name], call)

    return wrapper


@never_raises
def _phase_name(call: Call) -> str | None:
    name = (call.arguments["cfg"] or {}).get("generation_phase", "cot")
    return name if name in _PHASES else None


def _engine_step(wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One pass of the engine: it says how many tokens were read (above zero) or written (below)."""
    running = running_phase()
    if running is None:
        return wrapped(*args, **kwargs)
    recording, phase = running
    mark = never_raises(recording.clock.mark)
    start = mark()
    outputs, tokens = wrapped(*args, **kwargs)
    end = mark()
    if start is not None and end is not None:
        if tokens > 0:
            phase.prefills.append((start, end))
        phase.passes.append(end)
    return outputs, tokens


def _language_model(handler: Any) -> Attributes:
    return {
        semconv.OPERATION_NAME: "generate_content",
        semconv.PROVIDER_NAME: "ace_step",
        semconv.REQUEST_MODEL: _model(handler, "acestep-5Hz-lm"),
        semconv.LM_BACKEND: str(handler.llm_backend),
    }


def _common(handler: Any) -> dict[str, AttributeValue]:
    return {
        semconv.OPERATION_NAME: "generate_content",
        semconv.PROVIDER_NAME: "ace_step",
        semconv.DEVICE: str(handler.device),
        semconv.DTYPE: str(handler.dtype).removeprefix("torch."),
        semconv.WEIGHTS: "checkpoint",
    }


def _model(handler: Any, otherwise: str) -> str:
    """The model's name where the handler remembers what it was set up with."""
    parameters: Mapping[str, Any] = getattr(handler, "last_init_params", None) or {}
    path = parameters.get("config_path") or parameters.get("lm_model_path") or otherwise
    return str(path).replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def _written(texts: Mapping[str, str], capture_content: bool) -> dict[str, AttributeValue]:
    """Lengths of what the user wrote, and the texts after opt-in."""
    attributes: dict[str, AttributeValue] = {_LENGTHS[name]: len(text) for name, text in texts.items()}
    if capture_content:
        attributes |= {_TEXTS[name]: text for name, text in texts.items()}
    return attributes


_PLANNING: Final = StageDefinition(semconv.LM, device_clock=False, attributes_before=_lm_attributes)
_PHASES: Final = {
    name: StageDefinition(
        span, device_clock=False, tracks_memory=True, is_lm_phase=True, attributes_before=_lm_attributes
    )
    for name, span in (("cot", semconv.LM_COT), ("codes", semconv.LM_CODES))
}
"""Phases by the name that the handler gives them; its third, ``understand``, is both in one."""
_CONDITION: Final = StageDefinition(semconv.CONDITION, tracks_memory=True)
_DIT: Final = StageDefinition(semconv.DIT, tracks_memory=True)
_DIT_STEP: Final = StageDefinition(
    semconv.DIT_STEP,
    detail=Detail.STEP,
    attributes_before=partial(_position, semconv.DIT, semconv.DIT_STEP_INDEX),
)
_VAE_DECODE: Final = StageDefinition(
    semconv.VAE_DECODE, tracks_memory=True, attributes_after=partial(_count, semconv.VAE_TILES)
)
_VAE_TILE: Final = StageDefinition(
    semconv.VAE_TILE,
    detail=Detail.STEP,
    attributes_before=partial(_position, semconv.VAE_DECODE, semconv.VAE_TILE_INDEX),
)
_SONG: Final = RequestDefinition(semconv.GENERATE_MUSIC, _song_start, _made, failure=_failure)
