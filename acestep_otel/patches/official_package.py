"""The seams of the released package ``ace-step`` 1.5, which calls itself ``acestep`` too.

Its handler is one class in the first releases and a set of mixins later; both end in ``AceStepHandler``, where the
names are looked up. What belongs to the checkpoint's own code (the transformer) has no class that could be named: it
is wrapped on the loaded object, for as long as a request runs. A name that a version lacks turns off one span.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping
from typing import Any, Final
from weakref import WeakKeyDictionary

from acestep_otel import semconv
from acestep_otel.patches.devices import device_named
from acestep_otel.patches.patcher import Seam, Wrapper
from acestep_otel.patches.temporary_patches import LoanedMethods
from acestep_otel.recording.call import Attributes, Call, RequestStart
from acestep_otel.recording.phase import PhaseRecord
from acestep_otel.recording.redaction import file_names
from acestep_otel.recording.request_tracer import TracingLayer
from acestep_otel.recording.trace_tree import (
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
_PHASES: Final = {"cot": semconv.LM_COT, "codes": semconv.LM_CODES}
"""Span of each phase by the name that the handler gives it; its third, ``understand``, is both in one."""
_TEXTS: Final = {"query": semconv.QUERY, "caption": semconv.CAPTION, "lyrics": semconv.LYRICS}
_LENGTHS: Final = {
    "query": semconv.QUERY_LENGTH,
    "caption": semconv.CAPTION_LENGTH,
    "lyrics": semconv.LYRICS_LENGTH,
}


class GenerationFailed(Exception):
    """A result that says it failed. Its message, which may quote the request, is left out."""


def seams(layer: TracingLayer) -> list[Seam]:
    """Every seam of the package, bound to a layer."""
    handler = _Handler(layer)
    plan = _stage(layer, semconv.LM, device_clock=False, known=_language_model)
    return [
        Seam("acestep.inference", "generate_music", _song(layer)),
        Seam("acestep.inference", "understand_music", _words(layer, semconv.UNDERSTAND_MUSIC)),
        Seam("acestep.inference", "create_sample", _words(layer, semconv.CREATE_SAMPLE)),
        Seam("acestep.inference", "format_sample", _words(layer, semconv.FORMAT_SAMPLE)),
        Seam(_HANDLER, "AceStepHandler.generate_music", handler.generate_music),
        Seam(_HANDLER, "AceStepHandler.service_generate", handler.service_generate),
        Seam(_HANDLER, "AceStepHandler._decode_generate_music_pred_latents", handler.decode, optional=True),
        Seam(_HANDLER, "AceStepHandler.tiled_decode", handler.decode),
        Seam(_LANGUAGE_MODEL, "LLMHandler.generate_with_stop_condition", plan),
        Seam(_LANGUAGE_MODEL, "LLMHandler.understand_audio_from_codes", plan),
        Seam(_LANGUAGE_MODEL, "LLMHandler.create_sample_from_query", plan),
        Seam(_LANGUAGE_MODEL, "LLMHandler.format_sample_from_input", plan),
        Seam(_LANGUAGE_MODEL, "LLMHandler.generate_from_formatted_prompt", _phase(layer)),
        Seam("nanovllm.engine.llm_engine", "LLMEngine.step", _engine_step),
    ]


def _song(layer: TracingLayer) -> Wrapper:
    @never_raises
    def start_of(call: Call) -> RequestStart:
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
            **_written(layer, {"caption": params.caption, "lyrics": params.lyrics}),
        }
        if params.duration and params.duration > 0:
            attributes[semconv.AUDIO_DURATION_REQUESTED] = float(params.duration)
        # Not in all versions.
        others = (str(getattr(params, name, "")) for name in ("instruction", "lm_negative_prompt"))
        texts = (params.caption, params.lyrics, *others, *file_names(params.src_audio, params.reference_audio))
        return RequestStart(device_named(str(handler.device)), attributes, texts)

    return _root(layer, semconv.GENERATE_MUSIC, start_of, _made)


def _words(layer: TracingLayer, name: str) -> Wrapper:
    @never_raises
    def start_of(call: Call) -> RequestStart:
        handler = call.arguments["llm_handler"]
        written = {text: str(call.arguments[text]) for text in _TEXTS if text in call.arguments}
        attributes = {
            **_common(handler),
            semconv.REQUEST_MODEL: _model(handler, "acestep-5Hz-lm"),
            semconv.OUTPUT_TYPE: "text",
            **_written(layer, written),
        }
        return RequestStart(device_named(str(handler.device)), attributes, tuple(written.values()))

    return _root(layer, name, start_of, lambda _: {})


def _root(
    layer: TracingLayer,
    name: str,
    start_of: Callable[[Call], RequestStart | None],
    found: Callable[[Any], Attributes],
) -> Wrapper:
    def failed(result: Any) -> BaseException | None:
        return None if result.success else GenerationFailed()

    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(wrapped, instance, args, kwargs)
        start = start_of(call)
        return call.run() if start is None else layer.request(name, call, start, found, failed)

    return wrapper


def _made(result: Any) -> Attributes:
    if not result.audios:
        return {}
    first = result.audios[0]
    return {semconv.AUDIO_DURATION: first["tensor"].shape[-1] / float(first["sample_rate"])}


class _Handler:
    """The seams of ``AceStepHandler``, which share what they know about running requests."""

    def __init__(self, layer: TracingLayer) -> None:
        self._layer = layer
        self._methods = LoanedMethods()
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
            self._layer.begin(semconv.CONDITION, tracks_memory=True)
            decoder = getattr(getattr(instance, "model", None), "decoder", None)
            with self._methods.wrapped(decoder, "forward", self._denoise_step):
                result = wrapped(*args, **kwargs)
            self._layer.end(semconv.CONDITION)
            self._layer.end(semconv.DIT, lambda loop: {semconv.DIT_STEPS: len(loop.children)} if loop.children else {})
            return result

        def run_for_caller() -> Any:
            take_over()
            return run()

        callers = self._contexts.get(instance, [])
        # With two callers at once nobody can say whose thread this is: no span rather than one in the wrong trace.
        if inside_request() or len(callers) != 1:
            return run()
        # A context cannot be entered twice, so the thread gets a copy of its caller's.
        return callers[0].copy().run(run_for_caller)

    def decode(self, wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The decode of all tiles; of nested ones the outermost counts."""
        call = Call(wrapped, instance, args, kwargs)
        if _running(semconv.VAE_DECODE) is not None:
            return call.run()
        return self._layer.stage(
            semconv.VAE_DECODE,
            call,
            tracks_memory=True,
            found=lambda decode, _: {semconv.VAE_TILES: len(decode.children)} if decode.children else {},
        )

    def _decode_call(
        self, wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        decode = _running(semconv.VAE_DECODE)
        if decode is None:
            return self._layer.stage(semconv.VAE_DECODE, Call(wrapped, instance, args, kwargs), tracks_memory=True)
        return self._layer.stage(
            semconv.VAE_TILE,
            Call(wrapped, instance, args, kwargs),
            detail=Detail.STEP,
            known=lambda: {semconv.VAE_TILE_INDEX: len(decode.children) - 1},
        )

    def _denoise_step(
        self, wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self._layer.end(semconv.CONDITION)
        self._layer.begin(semconv.DIT, tracks_memory=True)
        loop = _running(semconv.DIT)
        return self._layer.stage(
            semconv.DIT_STEP,
            Call(wrapped, instance, args, kwargs),
            detail=Detail.STEP,
            known=lambda: {} if loop is None else {semconv.DIT_STEP_INDEX: len(loop.children) - 1},
        )


def _running(name: str) -> Stage | None:
    recording = current_recording()
    return None if recording is None else recording.running(name)


def _stage(layer: TracingLayer, name: str, *, device_clock: bool, known: Callable[[Any], Attributes]) -> Wrapper:
    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return layer.stage(
            name,
            Call(wrapped, instance, args, kwargs),
            device_clock=device_clock,
            known=lambda: known(instance),
        )

    return wrapper


def _phase(layer: TracingLayer) -> Wrapper:
    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(wrapped, instance, args, kwargs)
        name = _phase_name(call) if current_recording() is not None else None
        if name is None:
            return call.run()
        return layer.stage(
            name,
            call,
            device_clock=False,
            tracks_memory=True,
            phase=PhaseRecord(),
            known=lambda: _language_model(instance),
        )

    return wrapper


@never_raises
def _phase_name(call: Call) -> str | None:
    return _PHASES.get((call.arguments["cfg"] or {}).get("generation_phase", "cot"))


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


def _written(layer: TracingLayer, texts: Mapping[str, str]) -> dict[str, AttributeValue]:
    """Lengths of what the user wrote, and the texts after opt-in."""
    attributes: dict[str, AttributeValue] = {_LENGTHS[name]: len(text) for name, text in texts.items()}
    if layer.settings.capture_content:
        attributes |= {_TEXTS[name]: text for name, text in texts.items()}
    return attributes
