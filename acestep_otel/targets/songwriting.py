"""The seams of the engine's verbs that write songs in words: the roots of their traces."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from acestep_otel import semconv
from acestep_otel.recording.call import Attributes, Call, RequestStart
from acestep_otel.recording.privacy import file_names
from acestep_otel.recording.recorder import StageRecorder
from acestep_otel.recording.stages import AttributeValue, never_raises
from acestep_otel.targets.seam import Seam, Wrapper

if TYPE_CHECKING:
    from acestep.planner.planner import Planner
    from acestep.types import SongBlueprint

_TEXTS: Final = {
    "query": (semconv.QUERY, semconv.QUERY_LENGTH),
    "caption": (semconv.CAPTION, semconv.CAPTION_LENGTH),
    "lyrics": (semconv.LYRICS, semconv.LYRICS_LENGTH),
}
"""Attributes of what the user wrote, by the name of its parameter: the text itself, and its length."""


def seams(layer: StageRecorder) -> list[Seam]:
    """Every such verb, bound to a layer."""
    return [
        Seam("acestep.blueprints", "BlueprintWriter.understand", _root(layer, semconv.UNDERSTAND_MUSIC, (), _codes)),
        Seam("acestep.blueprints", "BlueprintWriter.understand_recording", _root(layer, semconv.UNDERSTAND_MUSIC, ())),
        Seam("acestep.blueprints", "BlueprintWriter.create", _root(layer, semconv.CREATE_SAMPLE, ("query",), _wish)),
        Seam(
            "acestep.blueprints", "BlueprintWriter.format", _root(layer, semconv.FORMAT_SAMPLE, ("caption", "lyrics"))
        ),
    ]


def _codes(call: Call) -> Attributes:
    return {semconv.AUDIO_CODES_COUNT: len(call.arguments["audio_codes"])}


def _wish(call: Call) -> Attributes:
    return {semconv.INSTRUMENTAL: call.arguments["instrumental"]}


def _nothing(_call: Call) -> Attributes:
    return {}


def _root(
    layer: StageRecorder, name: str, texts: tuple[str, ...], known: Callable[[Call], Attributes] = _nothing
) -> Wrapper:
    """The wrapper of one verb.

    Args:
        layer: that it records into.
        name: of the root span.
        texts: parameters that hold what the user wrote, keys of ``_TEXTS``.
        known: further attributes of the call.
    """

    @never_raises
    def start_of(call: Call) -> RequestStart:
        planner: Planner = call.instance.planner
        written = {parameter: str(call.arguments[parameter]) for parameter in texts}
        recording = file_names(call.arguments.get("recording"))
        attributes: dict[str, AttributeValue] = {
            semconv.OPERATION_NAME: "generate_content",
            semconv.PROVIDER_NAME: "ace_step",
            semconv.REQUEST_MODEL: planner.model_name,
            semconv.OUTPUT_TYPE: "text",
            semconv.DEVICE: str(planner.device),
            semconv.DTYPE: str(planner.dtype).removeprefix("torch."),
            semconv.WEIGHTS: planner.weights,
            **known(call),
        }
        for parameter, text in written.items():
            content, length = _TEXTS[parameter]
            attributes[length] = len(text)
            if layer.settings.capture_content:
                attributes[content] = text
        return RequestStart(device=planner.device, attributes=attributes, user_texts=(*written.values(), *recording))

    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(wrapped, instance, args, kwargs)
        start = start_of(call)
        return call.run() if start is None else layer.request(name, call, start, _blueprint)

    return wrapper


def _blueprint(blueprint: SongBlueprint) -> Attributes:
    attributes: dict[str, AttributeValue] = {semconv.LYRICS_COMPLETE: blueprint.lyrics_complete}
    if blueprint.audio_codes:
        attributes[semconv.AUDIO_CODES_COUNT] = len(blueprint.audio_codes)
    return attributes
