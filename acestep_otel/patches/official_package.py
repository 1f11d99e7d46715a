"""Patches of the released package ``ace-step`` 1.5, also imported as ``acestep``: its requests, and the list of all.

Its handler is one class in the first releases and a set of mixins later; both end in ``AceStepHandler``, where the
names are looked up (``official_package_renderer``, ``official_package_language_model``). A name that a version lacks
turns off one span. A request is recorded whatever its arguments are: each field is read separately, and one that
cannot be read is absent.

The package reports failures in its results. Such a failure ends the spans that it concerns, with the exception that
the package caught where one was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from acestep_otel import semconv
from acestep_otel.patches.official_package_language_model import (
    LanguageModelPatches,
    language_model_name,
    reported_failure,
)
from acestep_otel.patches.official_package_renderer import SAVE, RendererPatches, renderer_name
from acestep_otel.patches.patcher import Gaps, Patch, Wrapper, device_named
from acestep_otel.patches.song_settings import adapter_attributes
from acestep_otel.patches.tolerant import argument, field, positive, readable, texts
from acestep_otel.recording.call import Call, RequestDefinition, RequestStart
from acestep_otel.recording.redaction import file_names
from acestep_otel.recording.request_tracer import RequestTracer
from acestep_otel.recording.trace_tree import (
    Attributes,
    Stage,
    current_recording,
    inside_request,
)

_HANDLER: Final = "acestep.handler"
_LANGUAGE_MODEL: Final = "acestep.llm_inference"
_INFERENCE: Final = "acestep.inference"
_PHASES: Final = (semconv.LM_COT, semconv.LM_CODES)
_GRAMMAR: Final = "acestep.constrained_logits_processor"
_RUNS_NO_LM: Final = frozenset({"cover", "cover-nofsq", "repaint", "extract"})
"""Tasks for which no version generates codes with the language model."""

_TEXTS: Final = {
    "query": (semconv.QUERY, semconv.QUERY_LENGTH),
    "caption": (semconv.CAPTION, semconv.CAPTION_LENGTH),
    "lyrics": (semconv.LYRICS, semconv.LYRICS_LENGTH),
}
"""Attributes of the user's texts: the text itself, and its length."""


def patches(tracer: RequestTracer) -> list[Patch]:
    """Every patch of the package, bound to a tracer."""
    gaps = Gaps()
    renderer = RendererPatches(tracer, gaps)
    language_model = LanguageModelPatches(tracer, gaps)
    understand, create, write = (
        _text_request(span) for span in (semconv.UNDERSTAND_MUSIC, semconv.CREATE_SAMPLE, semconv.FORMAT_SAMPLE)
    )
    direct = partial(_direct, tracer)
    planning = language_model.planning
    return [
        # A server may have imported these before anything was instrumented.
        Patch(_INFERENCE, "generate_music", _SONG, everywhere=True),
        Patch(_INFERENCE, "understand_music", understand, everywhere=True),
        Patch(_INFERENCE, "create_sample", create, everywhere=True),
        Patch(_INFERENCE, "format_sample", write, everywhere=True),
        Patch(_HANDLER, "AceStepHandler.initialize_service", renderer.initialize, spans=(semconv.MODEL_LOAD,)),
        Patch(
            _HANDLER,
            "AceStepHandler.generate_music",
            direct(_HANDLER_SONG, renderer.generate_music),
            spans=(semconv.CONDITION, semconv.DIT, semconv.VAE_TILE),
        ),
        Patch(
            _HANDLER,
            "AceStepHandler._run_generate_music_service_with_progress",
            renderer.hand_over,
            optional=True,
            spans=(semconv.CONDITION, semconv.DIT),
        ),
        Patch(
            _HANDLER,
            "AceStepHandler.service_generate",
            renderer.service_generate,
            spans=(semconv.CONDITION, semconv.DIT, semconv.DIT_STEP),
        ),
        Patch(
            _HANDLER, "AceStepHandler._mlx_run_diffusion", renderer.mlx_diffusion, optional=True, spans=(semconv.DIT,)
        ),
        Patch(
            _HANDLER,
            "AceStepHandler._decode_generate_music_pred_latents",
            renderer.decode,
            optional=True,
            spans=(semconv.VAE_DECODE,),
        ),
        Patch(_HANDLER, "AceStepHandler.tiled_decode", renderer.decode, spans=(semconv.VAE_DECODE,)),
        Patch(_HANDLER, "AceStepHandler.tiled_encode", renderer.encode, optional=True, spans=(semconv.VAE_ENCODE,)),
        Patch(
            _HANDLER,
            "AceStepHandler._recursive_to_device",
            renderer.move,
            optional=True,
            spans=(semconv.OFFLOAD_MOVE,),
        ),
        Patch("acestep.audio_utils", "AudioSaver.save_audio", SAVE),
        Patch(_LANGUAGE_MODEL, "LLMHandler.initialize", language_model.initialize, spans=(semconv.MODEL_LOAD,)),
        Patch(_LANGUAGE_MODEL, "LLMHandler.generate_with_stop_condition", planning, spans=(semconv.LM,)),
        Patch(
            _LANGUAGE_MODEL,
            "LLMHandler.understand_audio_from_codes",
            direct(understand, planning),
            spans=(semconv.UNDERSTAND_MUSIC, semconv.LM),
        ),
        Patch(
            _LANGUAGE_MODEL,
            "LLMHandler.create_sample_from_query",
            direct(create, planning),
            optional=True,
            spans=(semconv.CREATE_SAMPLE, semconv.LM),
        ),
        Patch(
            _LANGUAGE_MODEL,
            "LLMHandler.format_sample_from_input",
            direct(write, planning),
            optional=True,
            spans=(semconv.FORMAT_SAMPLE, semconv.LM),
        ),
        *(
            Patch(
                _LANGUAGE_MODEL,
                f"LLMHandler.{runner}",
                language_model.run_phase,
                optional=runner == "_run_mlx",
                spans=_PHASES,
            )
            for runner in ("_run_vllm", "_run_pt", "_run_mlx")
        ),
        Patch(
            _LANGUAGE_MODEL,
            "LLMHandler._generate_with_cfg_custom",
            language_model.guided_prompts,
            optional=True,
            spans=_PHASES,
        ),
        *(
            Patch(
                _GRAMMAR,
                f"MetadataConstrainedLogitsProcessor.{name}",
                language_model.grammar,
                spans=_PHASES,
            )
            for name in ("__call__", "update_state")
        ),
        Patch(
            "nanovllm.engine.scheduler",
            "Scheduler.add",
            language_model.engine_add,
            spans=_PHASES,
        ),
        Patch(
            "nanovllm.engine.llm_engine",
            "LLMEngine.step",
            language_model.engine_step,
            spans=_PHASES,
        ),
    ]


def _direct(tracer: RequestTracer, request: RequestDefinition, stage: Wrapper) -> Wrapper:
    """A method that is part of a request, or a request itself if an application calls it directly."""

    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if inside_request():
            return stage(wrapped, instance, args, kwargs)
        call = Call(wrapped, instance, args, kwargs)
        definition = RequestDefinition(
            request.span,
            start=lambda _call, capture_content: request.start(call, capture_content),
            attributes_after=lambda _call, result: request.attributes_after(call, result),
            failure=request.failure,
        )
        return tracer.request(definition, Call(stage, None, (wrapped, instance, args, kwargs), {}))

    return wrapper


def _song_start(call: Call, capture_content: bool) -> RequestStart:
    handler, lm, params, config = (argument(call, name) for name in ("dit_handler", "llm_handler", "params", "config"))
    task, seconds = field(params, "task_type"), positive(field(params, "duration"))
    written = {name: field(params, name) for name in ("caption", "lyrics")}
    values = {
        **_about_renderer(handler),
        semconv.REQUEST_CHOICE_COUNT: field(config, "batch_size"),
        semconv.TASK: task,
        # As far as it is known before the run, and corrected after it.
        semconv.THINKING: bool(field(params, "thinking"))
        and bool(field(lm, "llm_initialized"))
        and task not in _RUNS_NO_LM
        and not field(params, "audio_codes"),
        semconv.DIT_STEPS_REQUESTED: field(params, "inference_steps"),
        semconv.AUDIO_DURATION_REQUESTED: seconds,
    }
    others = (
        field(params, name)
        for name in (
            "instruction",
            "global_caption",
            "lm_negative_prompt",
            "flow_edit_source_caption",
            "flow_edit_source_lyrics",
        )
    )
    files = file_names(*texts((field(params, "src_audio"), field(params, "reference_audio"))))
    return _request_start(handler, values, written, capture_content, (*others, *files))


def _handler_song_start(call: Call, capture_content: bool) -> RequestStart:
    written = {"caption": argument(call, "captions"), "lyrics": argument(call, "lyrics")}
    values = {
        **_about_renderer(call.instance),
        semconv.REQUEST_CHOICE_COUNT: argument(call, "batch_size"),
        semconv.TASK: argument(call, "task_type"),
        semconv.THINKING: False,
        semconv.DIT_STEPS_REQUESTED: argument(call, "inference_steps"),
        semconv.AUDIO_DURATION_REQUESTED: positive(argument(call, "audio_duration")),
    }
    files = file_names(*texts((argument(call, "src_audio"), argument(call, "reference_audio"))))
    return _request_start(call.instance, values, written, capture_content, (argument(call, "instruction"), *files))


def _text_start(call: Call, capture_content: bool) -> RequestStart:
    handler = call.instance if call.instance is not None else argument(call, "llm_handler")
    written = {name: argument(call, name) for name in _TEXTS}
    codes = argument(call, "audio_codes")
    values = {
        **_about(handler),
        semconv.REQUEST_MODEL: language_model_name(handler),
        semconv.OUTPUT_TYPE: "text",
        semconv.INSTRUMENTAL: argument(call, "instrumental"),
        semconv.AUDIO_CODES_COUNT: codes.count("<|audio_code_") if isinstance(codes, str) else None,
    }
    return _request_start(handler, values, written, capture_content, ())


def _request_start(
    handler: Any, values: Attributes, written: dict[str, Any], capture_content: bool, others: Iterable[Any]
) -> RequestStart:
    for name, text in written.items():
        content, length = _TEXTS[name]
        if (said := texts((text,))) and text:
            values = {**values, length: sum(map(len, said))}
            if capture_content:
                values = {**values, content: "\n".join(said)}
    device = field(handler, "device")
    return RequestStart(
        device_named("cpu" if device is None else str(device)), readable(values), texts((*written.values(), *others))
    )


def _about(handler: Any) -> dict[str, Any]:
    dtype = field(handler, "dtype")
    return {
        semconv.OPERATION_NAME: "generate_content",
        semconv.PROVIDER_NAME: "ace_step",
        semconv.DEVICE: field(handler, "device"),
        semconv.DTYPE: None if dtype is None else str(dtype).removeprefix("torch."),
        semconv.WEIGHTS: "checkpoint",
    }


def _about_renderer(handler: Any) -> dict[str, Any]:
    return {
        **_about(handler),
        semconv.REQUEST_MODEL: renderer_name(handler),
        semconv.OUTPUT_TYPE: "music",
        semconv.OFFLOAD: field(handler, "offload_to_cpu"),
        semconv.OFFLOAD_DIT: field(handler, "offload_dit_to_cpu"),
        semconv.QUANTIZATION: field(handler, "quantization") or "none",
        semconv.COMPILED: field(handler, "compiled"),
        **adapter_attributes(_adapters(handler)),
    }


def _adapters(handler: Any) -> list[tuple[str, float]]:
    """The active adapter of a handler and its scale; only one is active at a time.

    The first versions keep the scale alone; there PEFT knows the name. A LoKr is not among PEFT's adapters.
    """
    if field(handler, "use_lora") is not True:
        return []
    scales = field(handler, "_active_loras") or {}
    active = field(handler, "_lora_active_adapter") or field(handler, "model", "decoder", "active_adapter")
    if not isinstance(active, str):
        active = next(iter(scales), "default")
    scale = field(scales, active)
    scale = field(handler, "lora_scale") if scale is None else scale
    return [(active, scale)] if isinstance(scale, int | float) else []


def _made(_call: Call, result: Any) -> Attributes:
    """The number of songs of the request: the package may generate fewer than requested."""
    audios = field(result, "audios") or []
    first = audios[0] if audios else None
    frames, rate = getattr(field(first, "tensor"), "shape", (None,))[-1], field(first, "sample_rate")
    recording = current_recording()
    stages = list(_below(recording.root)) if recording is not None else []
    loops = [stage for stage in stages if stage.name == semconv.DIT]
    return readable(
        {
            semconv.BATCH_SIZE: len(audios) or None,
            semconv.AUDIO_DURATION: frames / rate if frames and rate else None,
            semconv.THINKING: any(stage.name == semconv.LM_CODES for stage in stages) if recording else None,
            semconv.DIT_STEPS: loops[-1].attributes.get(semconv.DIT_STEPS) if loops else None,
        }
    )


def _below(stage: Stage) -> Iterable[Stage]:
    for child in stage.children:
        yield child
        yield from _below(child)


def _text_request(span: str) -> RequestDefinition:
    return RequestDefinition(span, _text_start, failure=reported_failure)


_SONG: Final = RequestDefinition(semconv.GENERATE_MUSIC, _song_start, _made, failure=reported_failure)
_HANDLER_SONG: Final = RequestDefinition(semconv.GENERATE_MUSIC, _handler_song_start, _made, failure=reported_failure)
