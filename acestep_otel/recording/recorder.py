"""What the engine's seams call: the tracing layer, or whatever else wants to know when a stage starts and ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

from acestep_otel.recording.call import Attributes, Call, RequestStart
from acestep_otel.settings import Settings

if TYPE_CHECKING:
    import torch


class StageRecorder(Protocol):
    """Runs calls as requests and stages."""

    @property
    def settings(self) -> Settings:
        """What the recorder was told to do."""

    def request(self, name: str, call: Call, start: RequestStart, found: Callable[[Any], Attributes], /) -> Any:
        """Run a call as a request (``TracingLayer.request``)."""

    def stage(self, name: str, call: Call, /, *args: Any, **details: Any) -> Any:
        """Run a call as a stage of the current request (``TracingLayer.stage``)."""

    def load(
        self, call: Call, /, *, model: str, role: str, device: torch.device, user_texts: tuple[str, ...] = ()
    ) -> Any:
        """Run a model's loading (``TracingLayer.load``)."""

    def adopt(self, name: str, start_ns: int, attributes: Attributes, parent: Context, kind: SpanKind, /) -> bool:
        """Emit a span that a library below measured (``TracingLayer.adopt``); returns whether it did."""
