"""Calls of patched functions, and the definitions of how they are recorded.

Definitions are data: a span's name, the detail level that it needs, the clock that times it, whether its memory peak is
recorded, and what is read from the call before and after it runs. A recorder (``RequestTracer``, or one that only
reports when stages start and end) runs calls according to them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

from acestep_otel.recording.trace_tree import Attributes, Stage
from acestep_otel.settings import Detail

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Call:
    """A call that a wrapper received."""

    wrapped: Callable[..., Any]
    instance: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self) -> Any:
        """Make the call."""
        return self.wrapped(*self.args, **self.kwargs)

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Every argument by the name of its parameter, however it was passed; defaults included."""
        # No ``cached_property``: in Python 3.11 all calls share its lock, and a child that is forked while another
        # thread holds it waits for it forever.
        known: Mapping[str, Any] | None = self.__dict__.get("_arguments")
        if known is None:
            known = self.__dict__["_arguments"] = self._bind()
        return known

    def _bind(self) -> Mapping[str, Any]:
        signature = _signature(getattr(self.wrapped, "__func__", self.wrapped))
        owner = () if self.instance is None else (self.instance,)
        arguments = signature.bind(*owner, *self.args, **self.kwargs)
        arguments.apply_defaults()
        return arguments.arguments


@lru_cache(maxsize=64)
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


@dataclass(frozen=True, slots=True)
class RequestStart:
    """The properties of a request that are known before it runs.

    Attributes:
        device: device whose clock and memory are read.
        attributes: of the root span; samplers see these.
        user_texts: what must not appear in exception messages.
    """

    device: torch.device
    attributes: Attributes
    user_texts: tuple[str, ...]


def _no_attributes(_call: Call, _result: Any) -> Attributes:
    return {}


def _no_content(_result: Any) -> Attributes:
    return {}


def _no_files(_result: Any) -> Sequence[Path]:
    return ()


def _no_failure(_result: Any) -> BaseException | None:
    return None


@dataclass(frozen=True, slots=True)
class RequestDefinition:
    """How a call is recorded as a request: the root of a tree.

    Attributes:
        span: name of the root span.
        start: reads what is known before the call; the flag says whether captions and lyrics may be captured.
        attributes_after: of the root span, read from the call and its result.
        content_after: texts of the result, for the root span; read only where content is captured.
        failure: the error that a result stands for, where a library reports failure without raising.
        files_after: of the songs that a result has; read only where songs are put in their trace.
    """

    span: str
    start: Callable[[Call, bool], RequestStart]
    attributes_after: Callable[[Call, Any], Attributes] = _no_attributes
    content_after: Callable[[Any], Attributes] = _no_content
    failure: Callable[[Any], BaseException | None] = _no_failure
    files_after: Callable[[Any], Sequence[Path]] = _no_files


@dataclass(frozen=True, slots=True)
class StageDefinition:
    """How a call is recorded as a stage of the current request.

    Attributes:
        span: name of the span.
        detail: level from which on the stage is recorded.
        device_clock: whether its times come from the device's clock; else from the host's.
        tracks_memory: whether its memory peak is taken.
        device: reads from the call the device whose memory is meant; ``None``: the request's device.
        is_lm_phase: whether it collects the times of tokens while the call runs.
        times_grammar: whether such a phase measures every call of the grammar, so that no call means zero seconds.
        attributes_before: read before the call; still there when the call fails.
        attributes_after: read from the call, its stage and its result.
        failure: the error that a result stands for, where a library reports failure without raising.
    """

    span: str
    detail: Detail = Detail.STAGE
    device_clock: bool = True
    tracks_memory: bool = False
    device: Callable[[Call], torch.device] | None = None
    is_lm_phase: bool = False
    times_grammar: bool = True
    attributes_before: Callable[[Call], Attributes] | None = None
    attributes_after: Callable[[Call, Stage, Any], Attributes] | None = None
    failure: Callable[[Any], BaseException | None] = _no_failure


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """One model that is loaded.

    Attributes:
        model: its name.
        device: device that it is loaded for.
        user_texts: what must not appear in exception messages.
    """

    model: str
    device: torch.device
    user_texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadDefinition:
    """How a call is recorded as a model's loading.

    Attributes:
        role: what the model is for.
        load: reads from the call which model is loaded.
        failure: the error that a result stands for, where a library reports failure without raising.
    """

    role: str
    load: Callable[[Call], ModelLoad]
    failure: Callable[[Any], BaseException | None] = _no_failure


class StageRecorder(Protocol):
    """Runs calls as requests, stages and loads."""

    def request(self, definition: RequestDefinition, call: Call, /) -> Any:
        """Run a call as a request."""

    def stage(self, definition: StageDefinition, call: Call, /) -> Any:
        """Run a call as a stage of the current request."""

    def load(self, definition: LoadDefinition, call: Call, /) -> Any:
        """Run a call as a model's loading."""

    def adopt(self, name: str, start_ns: int, attributes: Attributes, parent: Context, kind: SpanKind, /) -> bool:
        """Emit a span that an underlying library measured (``RequestTracer.adopt``); returns whether it was emitted."""
