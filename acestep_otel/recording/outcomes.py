"""How a request or a stage ended: success, an error, lack of memory, or cancellation.

Exceptions are recognised by the names of their classes, so that no engine and no framework has to be importable.
"""

from __future__ import annotations

from typing import Final

from opentelemetry.trace import Span, Status, StatusCode

from acestep_otel import semconv
from acestep_otel.recording.redaction import Scrubber

OK: Final = "ok"
"""Value of ``acestep.outcome`` for success."""
CANCELLED: Final = "cancelled"
"""Value of ``acestep.outcome`` for a cancelled request."""
_OUT_OF_MEMORY: Final = frozenset({"OutOfMemory", "OutOfMemoryError", "MemoryError"})
"""The engine's, PyTorch's and Python's."""
_CANCELLATIONS: Final = frozenset({"Cancelled", "CancelledError"})
"""The engine's and trio's; those of asyncio and concurrent.futures."""


class ReportedFailure(Exception):
    """A failure that a library reported by its result: no exception passed through the call.

    Attributes:
        kind: what went wrong: the class of the exception that the library caught, where one was seen.
    """

    def __init__(self, kind: str, message: str = "") -> None:
        super().__init__(message)
        self.kind = kind


def kind_of(error: BaseException | None) -> str:
    """Class name of the error."""
    return error.kind if isinstance(error, ReportedFailure) else type(error).__name__


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether a stage ended because the device or the host had no memory left."""
    return kind_of(error) in _OUT_OF_MEMORY


def is_cancellation(error: BaseException | None) -> bool:
    """Whether it was cancelled by its caller: an outcome of its own, not an error."""
    return any(kind.__name__ in _CANCELLATIONS for kind in type(error).__mro__)


def outcome_of(error: BaseException | None) -> str:
    """The value of ``acestep.outcome``."""
    if error is None:
        return OK
    return CANCELLED if is_cancellation(error) else kind_of(error)


def error_type(error: BaseException | None) -> str | None:
    """The value of ``error.type``; ``None`` where nothing failed."""
    return None if error is None or is_cancellation(error) else kind_of(error)


def record_outcome(span: Span, error: BaseException, scrub: Scrubber, timestamp_ns: int | None = None) -> None:
    """Record on a span what ended it: a failure as its status, a cancellation as an attribute.

    Args:
        span: still open.
        error: exception that left the call, or that a library reported.
        scrub: removes what the user wrote from its message.
        timestamp_ns: Unix nanoseconds; now when not given.
    """
    if is_cancellation(error):
        span.set_attribute(semconv.OUTCOME, CANCELLED)
        return
    kind, event = kind_of(error), scrub.event(error)
    if reported := isinstance(error, ReportedFailure):
        event["exception.type"] = kind
    span.set_attribute(semconv.ERROR_TYPE, kind)
    span.record_exception(error, event, timestamp=timestamp_ns, escaped=not reported)
    span.set_status(Status(StatusCode.ERROR, kind))
