"""The seams that let vLLM's own spans join the trace: one ``llm_request`` for each of its requests.

vLLM makes them when it is given an OTLP endpoint, and then sets up an exporter of its own for the whole process. Here
its request tracing is switched on for the planner's engine alone, and its spans go where the layer's own go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from acestep_otel.recording.recorder import StageRecorder
from acestep_otel.recording.stages import current_recording, never_raises
from acestep_otel.targets.seam import Seam, Wrapper

_BACKEND = "acestep.planner.backends.vllm.backend"
_ASKED = "gen_ai.request."


def seams(layer: StageRecorder) -> list[Seam]:
    """Every such seam, bound to a layer."""
    return [
        Seam(_BACKEND, "build_engine", _traced_engine),
        Seam("vllm.v1.engine.llm_engine", "LLMEngine.add_request", _in_trace),
        Seam("vllm.v1.engine.output_processor", "instrument_manual", _own_span(layer)),
    ]


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


def _own_span(layer: StageRecorder) -> Wrapper:
    @never_raises
    def adopt(name: str, start_time: int, attributes: dict[str, Any], context: Any, kind: SpanKind) -> bool:
        # What the engine was asked is not what the user asked: it draws no tokens itself.
        measured = {key: value for key, value in attributes.items() if not key.startswith(_ASKED)}
        return layer.adopt(name, start_time, measured, context, kind)

    def wrapper(wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Without a parent it is a request that no trace of ours sent: vLLM's own affair.
        if kwargs.get("context") is not None and adopt(
            kwargs["span_name"], kwargs["start_time"], kwargs["attributes"], kwargs["context"], kwargs["kind"]
        ):
            return None
        return wrapped(*args, **kwargs)

    return wrapper
