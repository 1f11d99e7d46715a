"""Patches of the engine's language model: the modes that write text, its phases, and its backends' passes.

vLLM's own span of a request is made a child of the phase that sent it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from acestep_otel import semconv
from acestep_otel.patches.engine_work import list_of_passes
from acestep_otel.patches.messages import input_messages, output_messages
from acestep_otel.patches.patcher import CustomWrapper, Patch, Wrapper
from acestep_otel.patches.phase_marks import decode_pass, grammar, prompt_pass
from acestep_otel.recording.call import Call, RequestDefinition, RequestStart, StageDefinition, StageRecorder
from acestep_otel.recording.guidance_share import current_guidance_share
from acestep_otel.recording.redaction import file_names
from acestep_otel.recording.trace_tree import (
    Attributes,
    AttributeValue,
    Stage,
    current_recording,
    never_raises,
)

if TYPE_CHECKING:
    import torch

    from acestep.planner.backends import PhaseTokens, PlannerBackend
    from acestep.planner.planner import Planner
    from acestep.planner.songwriter import Songwriter
    from acestep.types import SongBlueprint

_TEXTS: Final = {
    "query": (semconv.QUERY, semconv.QUERY_LENGTH),
    "caption": (semconv.CAPTION, semconv.CAPTION_LENGTH),
    "lyrics": (semconv.LYRICS, semconv.LYRICS_LENGTH),
}
"""Attributes of the user's texts, by the name of the parameter: the text itself, and its length."""


def _codes(call: Call) -> Attributes:
    codes = len(call.arguments["audio_codes"])
    return {semconv.AUDIO_CODES_COUNT: codes, semconv.USAGE_AUDIO_INPUT_TOKENS: codes}


def _query(call: Call) -> Attributes:
    return {semconv.INSTRUMENTAL: call.arguments["instrumental"]}


def _no_attributes(_call: Call) -> Attributes:
    return {}


def _text_request(
    span: str, texts: tuple[str, ...] = (), attributes: Callable[[Call], Attributes] = _no_attributes
) -> RequestDefinition:
    """A request whose result is the description of a song.

    Args:
        span: name of the root span.
        texts: parameters that hold what the user wrote, keys of ``_TEXTS``.
        attributes: further attributes of the call.
    """

    def start(call: Call, capture_content: bool) -> RequestStart:
        planner: Planner = call.instance.planner
        written = {parameter: str(call.arguments[parameter]) for parameter in texts}
        recording = file_names(call.arguments.get("recording"))
        known: dict[str, AttributeValue] = {
            semconv.OPERATION_NAME: "generate_content",
            semconv.PROVIDER_NAME: "ace_step",
            semconv.REQUEST_MODEL: planner.model_name,
            semconv.OUTPUT_TYPE: "text",
            semconv.DEVICE: str(planner.device),
            semconv.DTYPE: str(planner.dtype).removeprefix("torch."),
            semconv.WEIGHTS: planner.weights,
            **attributes(call),
        }
        for parameter, text in written.items():
            content, length = _TEXTS[parameter]
            known[length] = len(text)
            if capture_content:
                known[content] = text
        if capture_content and written:
            known[semconv.INPUT_MESSAGES] = input_messages(*written.values())
        return RequestStart(planner.device, known, (*written.values(), *recording))

    return RequestDefinition(span, start, _blueprint, _blueprint_texts)


def _blueprint(call: Call, blueprint: SongBlueprint) -> Attributes:
    attributes: dict[str, AttributeValue] = {
        semconv.LYRICS_COMPLETE: blueprint.lyrics_complete,
        semconv.RESPONSE_MODEL: call.instance.planner.model_name,
    }
    if blueprint.audio_codes:
        attributes[semconv.AUDIO_CODES_COUNT] = len(blueprint.audio_codes)
    return attributes


def _blueprint_texts(blueprint: SongBlueprint) -> Attributes:
    reason = "stop" if blueprint.lyrics_complete else "length"
    return {semconv.OUTPUT_MESSAGES: output_messages(reason, blueprint.metadata.caption or "", blueprint.lyrics)}


def _sampling(call: Call) -> Attributes:
    sampling = call.arguments["request"].sampling
    attributes = _model_attributes(call.instance) | {
        semconv.LM_BACKEND: call.instance.backend.name,
        semconv.LM_GUIDANCE_SCALE: float(sampling.guidance_scale),
        semconv.REQUEST_TEMPERATURE: float(sampling.temperature),
        semconv.REQUEST_TOP_P: float(sampling.top_p),
    }
    return attributes | ({semconv.REQUEST_TOP_K: sampling.top_k} if sampling.top_k else {})


def _device(call: Call) -> torch.device:
    """The device of the language model, which may have a card of its own."""
    planner: Planner = call.instance
    return planner.device


def _written(call: Call, stage: Stage, written: Any) -> Attributes:
    reasoned = [
        child.attributes.get(semconv.USAGE_REASONING_OUTPUT_TOKENS, 0)
        for child in stage.children
        if child.name == semconv.LM_COT
    ]
    return {
        **_summed_tokens(written.phases),
        **_kinds_of_tokens(stage.children),
        semconv.USAGE_REASONING_OUTPUT_TOKENS: sum(map(int, reasoned)),
        **_decode_path(call.instance.backend),
    }


_WRITING: Final = StageDefinition(
    semconv.LM, device_clock=False, attributes_before=_sampling, attributes_after=_written
)
_PLANNING: Final = replace(_WRITING, device=_device)


def _model_attributes(planner: Planner | Songwriter) -> dict[str, AttributeValue]:
    return {
        semconv.OPERATION_NAME: "generate_content",
        semconv.PROVIDER_NAME: "ace_step",
        semconv.REQUEST_MODEL: planner.model_name,
        semconv.RESPONSE_MODEL: planner.model_name,
    }


def _decode_path(backend: PlannerBackend[Any]) -> Attributes:
    """The decode path, known after the run: the first pass of a process decides it."""
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
    """The measurements of the engine itself, in addition to the layer's own figures."""
    times = tokens.engine_times
    if times is None:
        return {}
    return {
        semconv.LM_ENGINE_QUEUE_DURATION: times.queue,
        semconv.LATENCY_QUEUE: times.queue,
        semconv.LM_ENGINE_TIME_TO_FIRST_TOKEN: times.time_to_first_token,
        semconv.LM_ENGINE_PREFILL_DURATION: times.prefill,
        semconv.LM_ENGINE_DECODE_DURATION: times.decode,
    }


def _phase_attributes(span: str, call: Call) -> Attributes:
    constrained = span == semconv.LM_COT and call.arguments["request"].use_constrained_decoding
    return _model_attributes(call.instance) | {semconv.LM_CONSTRAINED: constrained}


def _phase_tokens(call: Call, stage: Stage, tokens: PhaseTokens) -> Attributes:
    drawn_from = None if stage.phase is None else stage.phase.mean_candidates
    # If the work cannot be computed, the tokens' attributes are recorded nevertheless.
    stage.passes.extend(never_raises(list_of_passes)(call.instance.backend, tokens, drawn_from) or ())
    attributes = {**_summed_tokens([tokens]), **_engine_times(tokens)}
    written = int(attributes[semconv.USAGE_OUTPUT_TOKENS])
    attributes[_KINDS[stage.name]] = written
    if stage.name == semconv.LM_COT:
        attributes[semconv.USAGE_REASONING_OUTPUT_TOKENS] = written
    stage.finish_reasons = _finish_reasons(stage, call.instance.backend, tokens)
    share = current_guidance_share()
    if tokens.unconditional_tokens and share is not None:
        attributes |= {semconv.LM_CFG_SHARE: share.decode, semconv.LM_CFG_PREFILL_SHARE: share.prefill}
    return attributes


_KINDS: Final = {
    semconv.LM_COT: semconv.USAGE_TEXT_OUTPUT_TOKENS,
    semconv.LM_CODES: semconv.USAGE_AUDIO_OUTPUT_TOKENS,
    semconv.LM_LYRICS: semconv.USAGE_TEXT_OUTPUT_TOKENS,
}
"""The attribute that counts the tokens of a phase."""


def _kinds_of_tokens(phases: Sequence[Stage]) -> Attributes:
    counted: dict[str, int] = {}
    for phase in phases:
        if (kind := _KINDS.get(phase.name)) is not None and kind in phase.attributes:
            counted[kind] = counted.get(kind, 0) + int(phase.attributes[kind])
    return counted


def _finish_reasons(stage: Stage, backend: PlannerBackend[Any], tokens: PhaseTokens) -> tuple[str, ...]:
    """Codes and constrained text end when they are complete; free text without an end reached its limit."""
    if stage.name == semconv.LM_CODES or stage.attributes.get(semconv.LM_CONSTRAINED):
        return ("stop",) * len(tokens.ids)
    layout = backend.vocabulary.layout
    ends = (layout.think_close, layout.eos, layout.pad)
    return tuple("stop" if ids and ids[-1] in ends else "length" for ids in tokens.ids)


def _phase(span: str, device: Callable[[Call], torch.device] | None = None) -> StageDefinition:
    return StageDefinition(
        span,
        device_clock=False,
        tracks_memory=True,
        device=device,
        is_lm_phase=True,
        attributes_before=partial(_phase_attributes, span),
        attributes_after=_phase_tokens,
    )


_VLLM_BACKEND: Final = "acestep.planner.backends.vllm.backend"
_ENGINE_PARAMETERS: Final = "gen_ai.request."


def _traced_engine(wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    engine = wrapped(*args, **kwargs)
    _switch_on(engine)
    return engine


@never_raises
def _switch_on(engine: Any) -> None:
    engine.output_processor.tracing_enabled = True


def _in_trace(wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    headers = _current_trace()
    return wrapped(*args, **kwargs) if headers is None else wrapped(*args, **{"trace_headers": headers} | kwargs)


@never_raises
def _current_trace() -> dict[str, str] | None:
    """W3C headers of the running request; none outside of one."""
    if current_recording() is None:
        return None
    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    return headers


def _own_span(recorder: StageRecorder) -> Wrapper:
    @never_raises
    def adopt(name: str, start_time: int, attributes: dict[str, Any], context: Any, kind: SpanKind) -> bool:
        # vLLM's sampling parameters are not the user's: the planner samples the tokens.
        measured = {key: value for key, value in attributes.items() if not key.startswith(_ENGINE_PARAMETERS)}
        return recorder.adopt(name, start_time, measured, context, kind)

    def wrapper(wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Without a parent the request is not of a traced call of this layer: vLLM emits its span itself.
        if kwargs.get("context") is not None and adopt(
            kwargs["span_name"], kwargs["start_time"], kwargs["attributes"], kwargs["context"], kwargs["kind"]
        ):
            return None
        return wrapped(*args, **kwargs)

    return wrapper


_BACKENDS: Final = (
    ("acestep.planner.backends.pt", "PtBackend"),
    ("acestep.planner.backends.vllm.backend", "VllmBackend"),
    ("acestep.planner.backends.mlx.backend", "MlxBackend"),
)
_BACKEND_METHODS: Final[tuple[tuple[str, Wrapper], ...]] = (
    ("prefill", prompt_pass),
    ("decode", decode_pass),
    ("constrain", grammar),
    ("accept", grammar),
)
"""Methods that every backend has for its passes and for the grammar."""

PATCHES: Final = (
    Patch("acestep.blueprints", "BlueprintWriter.understand", _text_request(semconv.UNDERSTAND_MUSIC, (), _codes)),
    Patch("acestep.blueprints", "BlueprintWriter.understand_recording", _text_request(semconv.UNDERSTAND_MUSIC)),
    Patch("acestep.blueprints", "BlueprintWriter.create", _text_request(semconv.CREATE_SAMPLE, ("query",), _query)),
    Patch("acestep.blueprints", "BlueprintWriter.format", _text_request(semconv.FORMAT_SAMPLE, ("caption", "lyrics"))),
    Patch("acestep.planner.planner", "Planner.plan", _PLANNING),
    Patch("acestep.planner.planner", "Planner.reason", _phase(semconv.LM_COT, _device)),
    Patch("acestep.planner.planner", "Planner.compose_codes", _phase(semconv.LM_CODES, _device)),
    Patch("acestep.planner.songwriter", "Songwriter.write", _WRITING),
    Patch("acestep.planner.songwriter", "Songwriter.reason", _phase(semconv.LM_COT)),
    Patch("acestep.planner.songwriter", "Songwriter.write_lyrics", _phase(semconv.LM_LYRICS)),
    *(
        Patch(module, f"{backend}.{method}", wrapper)
        for module, backend in _BACKENDS
        for method, wrapper in _BACKEND_METHODS
    ),
    Patch(_VLLM_BACKEND, "build_engine", _traced_engine),
    Patch("vllm.v1.engine.llm_engine", "LLMEngine.add_request", _in_trace),
    Patch("vllm.v1.engine.output_processor", "instrument_manual", CustomWrapper(_own_span)),
)
"""Every patch of the language model."""
