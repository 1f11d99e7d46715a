"""Keeps callers' input out of the logs and spans of other libraries, where this package sets up the telemetry.

Propagators log every header that they cannot read, in full. Instrumentations of web frameworks
record the message and the stack trace of an exception, which quote input. ``acestep_otel.configure`` and the entry
point of ``opentelemetry-instrument`` call ``protect_callers``; ``AceStepInstrumentor`` alone changes no other library.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import entry_points
from typing import Any, Final

from wrapt import wrap_function_wrapper

from acestep_otel.recording.redaction import REDACTED
from acestep_otel.settings import Settings

_REPORT_SECONDS: Final = 60.0
_MESSAGE: Final = "exception.message"
_STACK_TRACE: Final = "exception.stacktrace"
_PROTECTED = threading.Lock()
_done = False


def protect_callers() -> None:
    """Make other libraries report errors without quoting input; takes effect once per process."""
    global _done
    with _PROTECTED:
        if _done:
            return
        _done = True
    headers = TraceHeaderLog()
    for name in _loggers_of_propagators():
        logging.getLogger(name).addFilter(headers)
    if not Settings.from_environment_or_default().capture_content:
        # Without the SDK there are no spans to protect.
        with suppress(ImportError):
            keep_messages_off_spans()


class TraceHeaderLog(logging.Filter):
    """Reduces the log of propagators to one line per minute with the number of headers and none of their text."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._count = 0
        self._reported: float | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Replace the record's message; returns whether it is logged."""
        with self._lock:
            self._count += 1
            now = self._clock()
            if self._reported is not None and now - self._reported < _REPORT_SECONDS:
                return False
            count, self._count, self._reported = self._count, 0, now
        record.msg = "trace headers of callers that are malformed or too long: %d since the last such line"
        record.args = (count,)
        record.exc_info = record.exc_text = record.stack_info = None
        return True


def _loggers_of_propagators() -> Iterator[str]:
    yield "opentelemetry.trace.span"  # of tracestate
    yield "opentelemetry.baggage.propagation"
    for point in entry_points(group="opentelemetry_propagator"):
        yield point.module


def keep_messages_off_spans() -> None:
    """Make the SDK's spans record the type and the code locations of an exception, without its message."""
    wrap_function_wrapper("opentelemetry.sdk.trace", "Span.record_exception", _without_message)
    wrap_function_wrapper("opentelemetry.sdk.trace", "Span.set_status", _without_description)


def _without_message(wrapped: Callable[..., None], _span: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    def call(exception: BaseException, attributes: Mapping[str, Any] | None = None, *more: Any, **named: Any) -> None:
        # A caller that passes a message has already redacted it, as the tracing layer does.
        clean = {_MESSAGE: REDACTED, _STACK_TRACE: _places(exception)}
        wrapped(exception, {**clean, **(attributes or {})}, *more, **named)

    call(*args, **kwargs)


def _places(error: BaseException | None) -> str:
    """The stack trace of an error and its causes without their messages."""
    parts: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        lines = traceback.format_tb(error.__traceback__)
        parts.append("".join(["Traceback (most recent call last):\n", *lines, f"{type(error).__name__}: {REDACTED}\n"]))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(reversed(parts))


def _without_description(
    wrapped: Callable[..., None], _span: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    def call(status: Any, description: str | None = None) -> None:
        # A description quotes the exception that is being handled, if it quotes any.
        quoted = [str(error) for error in _handled() if str(error)]
        given = getattr(status, "description", None)
        if isinstance(given, str) and (clean := _cleared(given, quoted)) != given:
            status = type(status)(status.status_code, clean)
        wrapped(status, None if description is None else _cleared(description, quoted))

    call(*args, **kwargs)


def _handled() -> Iterator[BaseException]:
    error = sys.exception()
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _cleared(description: str, quoted: list[str]) -> str:
    for text in quoted:
        description = description.replace(text, REDACTED)
    return description
