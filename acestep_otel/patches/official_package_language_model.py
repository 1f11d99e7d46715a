"""The language model of the released package ``ace-step``: its requests' phases, tokens and grammar.

Each of its three backends writes one phase per call of its runner, for one song or for a batch. nano-vllm counts its
tokens; PyTorch's passes are seen at the model's ``forward``; MLX shows its phases and the grammar, and no tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final
from weakref import WeakKeyDictionary

from acestep_otel import semconv
from acestep_otel.patches.patcher import Gaps, TemporaryPatches, Wrapper, device_named
from acestep_otel.patches.phase_marks import grammar, mark_now
from acestep_otel.patches.tolerant import argument, field, readable
from acestep_otel.recording.call import Call, LoadDefinition, ModelLoad, StageDefinition
from acestep_otel.recording.outcomes import ReportedFailure, kind_of
from acestep_otel.recording.redaction import file_names
from acestep_otel.recording.request_tracer import RequestTracer
from acestep_otel.recording.trace_tree import (
    Attributes,
    Stage,
    current_recording,
    inside_request,
    never_raises,
    running_phase,
)

_SPANS: Final = {"cot": semconv.LM_COT, "codes": semconv.LM_CODES, "understand": semconv.LM_COT}
"""Phases by the name that the handler gives them; ``understand`` writes metadata, and lyrics after it."""
_FAILED: Final = "GenerationFailed"
_TOKENS: Final = (
    semconv.USAGE_INPUT_TOKENS,
    semconv.USAGE_OUTPUT_TOKENS,
    semconv.LM_SAMPLED_TOKENS,
    semconv.LM_UNCONDITIONAL_TOKENS,
    semconv.LM_FORWARDS,
)

_models: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
"""Models of handlers, by what they were initialized with."""


def base_name(path: Any) -> str | None:
    """The name of the model, without the folders, which may identify the user."""
    return str(path).replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] or None if path else None


def language_model_name(handler: Any) -> str | None:
    """The model that a handler was initialized with, or that its tokenizer was read from."""
    known = _models.get(handler) if handler is not None else None
    return known or base_name(
        field(handler, "last_init_params", "lm_model_path") or field(handler, "llm_tokenizer", "name_or_path")
    )


def reported_failure(result: Any) -> BaseException | None:
    """The failure in a result of the package, with the caught exception as its cause.

    Args:
        result: an object or mapping with ``success`` and ``error``, or a pair of what was written and a status.
    """
    if isinstance(result, tuple):
        written, message = (*result, None)[:2]
        failed = not written
    else:
        failed, message = field(result, "success") is False, field(result, "error")
    if not failed:
        return None
    text = "" if message is None else str(message)
    recording = current_recording()
    cause = None if recording is None else recording.error
    kind = "OutOfMemoryError" if "out of memory" in text.lower() else _FAILED
    failure = ReportedFailure(kind if cause is None else kind_of(cause), text)
    failure.__cause__ = cause
    return failure


def _wrote_nothing(result: Any) -> BaseException | None:
    empty = not any(result) if isinstance(result, list) else not result
    return ReportedFailure("NoText", "the language model wrote nothing") if empty else None


def _sampling(call: Call) -> Attributes:
    return readable(
        {
            **_model(call.instance),
            semconv.LM_BACKEND: field(call.instance, "llm_backend"),
            semconv.LM_GUIDANCE_SCALE: argument(call, "cfg_scale"),
            semconv.REQUEST_TEMPERATURE: argument(call, "temperature"),
            semconv.REQUEST_TOP_P: argument(call, "top_p"),
            semconv.REQUEST_TOP_K: argument(call, "top_k"),
        }
    )


def _model(handler: Any) -> dict[str, Any]:
    return {
        semconv.OPERATION_NAME: "generate_content",
        semconv.PROVIDER_NAME: "ace_step",
        semconv.REQUEST_MODEL: language_model_name(handler),
    }


def _phase_attributes(call: Call) -> Attributes:
    constrained = argument(call, "use_constrained_decoding") if argument(call, "generation_phase") != "codes" else False
    return readable({**_model(call.instance), semconv.LM_CONSTRAINED: constrained})


def _phase_tokens(_call: Call, stage: Stage, _result: Any) -> Attributes:
    return dict(stage.phase.counts) if stage.phase is not None else {}


def _summed_tokens(_call: Call, stage: Stage, _result: Any) -> Attributes:
    """The tokens of all phases; there is no sum if one of them was not counted."""
    phases = [child for child in stage.children if child.phase is not None]
    return {
        name: sum(int(phase.attributes[name]) for phase in phases)
        for name in _TOKENS
        if phases and all(name in phase.attributes for phase in phases)
    }


def _load(call: Call) -> ModelLoad:
    named, device = argument(call, "lm_model_path"), argument(call, "device")
    # The default of the package, and the device that it chooses.
    model = base_name(named) or "acestep-5Hz-lm-1.7B"
    return ModelLoad(model, device_named(_device(device)), tuple(file_names(str(named))) if named != model else ())


def _device(name: Any) -> str:
    return "cpu" if name in (None, "auto") else str(name)


def load_failure(result: Any) -> BaseException | None:
    """The failure in the result of an initialization: a status, and whether it succeeded."""
    if isinstance(result, tuple) and len(result) == 2 and result[1] is False:
        return ReportedFailure("LoadFailed", str(result[0]).partition("\n\nTraceback")[0])
    return None


def remembering(tracer: RequestTracer, definition: LoadDefinition, models: MutableMapping[Any, str]) -> Wrapper:
    """The loading of a handler; its model is noted, because the handler itself does not store the name."""

    @never_raises
    def remember(call: Call) -> None:
        models[call.instance] = definition.load(call).model

    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(wrapped, instance, args, kwargs)
        result = tracer.load(definition, call)
        if load_failure(result) is None:
            remember(call)
        return result

    return wrapper


class LanguageModelPatches:
    """The patches of ``LLMHandler`` and of what it runs on."""

    grammar = staticmethod(grammar)

    def __init__(self, tracer: RequestTracer, gaps: Gaps) -> None:
        self._tracer = tracer
        self._gaps = gaps
        self._methods = TemporaryPatches()
        self.initialize = remembering(tracer, _LOAD, _models)

    def planning(
        self, wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """All work of the language model for a request; of nested calls only the outermost is recorded."""
        if not inside_request():
            self._gaps.met(semconv.LM, f"{getattr(wrapped, '__name__', 'the planner')} was called outside of a request")
        call = Call(wrapped, instance, args, kwargs)
        recording = current_recording()
        nested = recording is not None and recording.running(semconv.LM) is not None
        return call.run() if nested else self._tracer.stage(_PLANNING, call)

    def run_phase(
        self, wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """One phase, by the backend that runs it, for one song or for all of a batch."""
        call = Call(wrapped, instance, args, kwargs)
        if current_recording() is None:
            return call.run()
        phase = argument(call, "generation_phase")
        if phase not in _SPANS:
            self._gaps.met(f"{semconv.LM}.*", f"phase {phase!r} is not known")
            return call.run()
        model = field(instance, "llm") if getattr(wrapped, "__name__", "") == "_run_pt" else None
        with self._methods.wrapped(model, "forward", _forward):
            return self._tracer.stage(_PHASES[phase], call)

    def guided_prompts(
        self, wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """PyTorch's loop with guidance: a conditional and an unconditional row, padded to one length."""
        result = wrapped(*args, **kwargs)
        if (running := running_phase()) is not None:
            # The loop has read its last token back, so reading the mask does not wait.
            never_raises(_count_guided_prompts)(
                running[1].counts, argument(Call(wrapped, instance, args, kwargs), "batch_attention_mask")
            )
        return result

    def engine_add(
        self, wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A row that nano-vllm is given: its prompt's length, and whether it is unconditional."""
        if (running := running_phase()) is not None:
            never_raises(_count_row)(running[1].counts, args[0] if args else kwargs.get("seq"))
        return wrapped(*args, **kwargs)

    def engine_step(
        self, wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """One pass of nano-vllm: rows that finished with their tokens, and whether prompts were read (above zero)."""
        running = running_phase()
        if running is None:
            return wrapped(*args, **kwargs)
        recording, phase = running
        start = mark_now(recording)
        outputs, tokens = wrapped(*args, **kwargs)
        end = mark_now(recording)
        if start is not None and end is not None:
            if tokens > 0:
                phase.prefills.append((start, end))
            phase.passes.append(end)
        never_raises(_count_step)(phase.counts, outputs)
        return outputs, tokens


def _forward(wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One pass of the PyTorch backend, which yields one token of the one song that it writes."""
    running = running_phase()
    if running is None:
        return wrapped(*args, **kwargs)
    recording, phase = running
    # Read before the pass, which fills the cache.
    reads_prompt = never_raises(_reads_prompt)(kwargs)
    start = mark_now(recording)
    result = wrapped(*args, **kwargs)
    end = mark_now(recording)
    if start is not None and end is not None:
        if reads_prompt:
            phase.prefills.append((start, end))
        phase.passes.append(end)
    never_raises(_count_pass)(phase.counts, kwargs, bool(reads_prompt))
    return result


def _reads_prompt(inputs: Mapping[str, Any]) -> bool:
    past = inputs.get("past_key_values")
    return past is None or not past.get_seq_length()


def _count_pass(counts: dict[str, int], inputs: Mapping[str, Any], reads_prompt: bool) -> None:
    rows, length = inputs["input_ids"].shape
    counts[semconv.LM_FORWARDS] += 1
    counts[semconv.USAGE_OUTPUT_TOKENS] += 1
    counts[semconv.LM_SAMPLED_TOKENS] += 1
    counts[semconv.LM_UNCONDITIONAL_TOKENS] += rows - 1
    # Two rows are padded to one length: `guided_prompts` counts those.
    if rows == 1 and reads_prompt:
        counts[semconv.USAGE_INPUT_TOKENS] += length


def _count_guided_prompts(counts: dict[str, int], mask: Any) -> None:
    conditional, unconditional = mask.sum(dim=1).tolist()
    counts[semconv.USAGE_INPUT_TOKENS] += conditional
    counts[semconv.LM_UNCONDITIONAL_TOKENS] += unconditional


def _count_row(counts: dict[str, int], row: Any) -> None:
    unconditional = bool(field(row, "is_unconditional"))
    counts[semconv.LM_UNCONDITIONAL_TOKENS if unconditional else semconv.USAGE_INPUT_TOKENS] += len(row)
    # So that a phase without guidance reports zero.
    counts[semconv.LM_UNCONDITIONAL_TOKENS] += 0


def _count_step(counts: dict[str, int], outputs: Any) -> None:
    written = sum(len(token_ids) for _, token_ids in outputs)
    counts[semconv.LM_FORWARDS] += 1
    counts[semconv.USAGE_OUTPUT_TOKENS] += written
    counts[semconv.LM_SAMPLED_TOKENS] += written
    if counts.get(semconv.LM_UNCONDITIONAL_TOKENS):
        counts[semconv.LM_UNCONDITIONAL_TOKENS] += written


_LOAD: Final = LoadDefinition("planner", _load, load_failure)
_PLANNING: Final = StageDefinition(
    semconv.LM,
    device_clock=False,
    attributes_before=_sampling,
    attributes_after=_summed_tokens,
    failure=reported_failure,
)
_PHASES: Final = {
    name: StageDefinition(
        span,
        device_clock=False,
        tracks_memory=True,
        is_lm_phase=True,
        times_grammar=False,
        attributes_before=_phase_attributes,
        attributes_after=_phase_tokens,
        failure=_wrote_nothing,
    )
    for name, span in _SPANS.items()
}
