"""A call that a seam stands in for, and what is known about a request before it runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from acestep_otel.recording.trace_tree import AttributeValue

if TYPE_CHECKING:
    import torch

Attributes = Mapping[str, AttributeValue]


@dataclass(frozen=True)
class Call:
    """The call that a wrapper stands in for."""

    wrapped: Callable[..., Any]
    instance: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self) -> Any:
        """Make the call."""
        return self.wrapped(*self.args, **self.kwargs)

    @cached_property
    def arguments(self) -> Mapping[str, Any]:
        """Every argument by the name of its parameter, however it was passed; defaults included."""
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
    """What is known about a request before it runs.

    Attributes:
        device: device whose clock and memory are read.
        attributes: of the root span; samplers see these.
        user_texts: what must not appear in exception messages.
    """

    device: torch.device
    attributes: Attributes
    user_texts: tuple[str, ...]
