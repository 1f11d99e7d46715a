"""Bounds the exit of a process under ``opentelemetry-instrument``.

Run by ``opentelemetry-instrument`` once everything is instrumented (entry point ``opentelemetry_post_instrument``).
There the SDK belongs to the agent and not to the application, so this module may replace its shutdown.
"""

from __future__ import annotations

import atexit
import logging
import time
from functools import partial
from multiprocessing import util as process_util
from typing import Any

from opentelemetry._logs import get_logger_provider
from opentelemetry.metrics import get_meter_provider
from opentelemetry.trace import get_tracer_provider

from acestep_otel.instrumentor import AceStepInstrumentor
from acestep_otel.privacy import protect_callers
from acestep_otel.sdk.forks import ExportsBeforeForks
from acestep_otel.sdk.variables import wrong_variables
from acestep_otel.shutdown import SHUTDOWN_SECONDS, deliver_within, exit_on_terminate_from_now_on

logger = logging.getLogger("acestep_otel")


def bound_exit() -> None:
    """Make the process exit within ``SHUTDOWN_SECONDS`` whatever the collector does, and flush on SIGTERM too.

    Takes the place of the providers' own shutdown at exit. Processes forked by ``multiprocessing``, which skip the
    exit handlers, deliver at their end as well. What callers sent is kept out of the logs and spans of other libraries.
    """
    if not AceStepInstrumentor().is_instrumented_by_opentelemetry:
        return
    protect_callers()
    # The SDK has already read them; it drops some without naming them.
    for wrong in wrong_variables():
        logger.warning("%s", wrong)
    _warn_of_empty_attributes(get_tracer_provider())
    ending = _Ending([get_tracer_provider(), get_meter_provider(), get_logger_provider()])
    atexit.register(ending.deliver)
    # Only a weak reference is kept, and in Python 3.13 a child has dropped its exit handlers by then: not ``ending``.
    process_util.register_after_fork(bound_exit, partial(_deliver_at_the_end_of_a_child, ending))
    exit_on_terminate_from_now_on()


def _warn_of_empty_attributes(provider: Any) -> None:
    attributes = getattr(getattr(provider, "resource", None), "attributes", {})
    if empty := sorted(name for name, value in attributes.items() if isinstance(value, str) and not value.strip()):
        logger.warning("OTEL_RESOURCE_ATTRIBUTES: %s is empty: leave it out for its default", " and ".join(empty))


class _Ending:
    def __init__(self, providers: list[Any]) -> None:
        self._forks = ExportsBeforeForks(providers)
        self._shutdowns = [provider.shutdown for provider in providers if hasattr(provider, "shutdown")]
        for shutdown in self._shutdowns:
            atexit.unregister(shutdown)

    def deliver(self) -> None:
        start = time.monotonic()
        AceStepInstrumentor().finish(timeout=1.0)
        deliver_within(
            SHUTDOWN_SECONDS - (time.monotonic() - start),
            [partial(_without_timeout, shutdown) for shutdown in self._shutdowns],
            report=logger.warning,
        )


def _without_timeout(shutdown: Any, _seconds: float) -> None:
    shutdown()


def _deliver_at_the_end_of_a_child(ending: _Ending, _registered: object) -> None:
    process_util.Finalize(None, ending.deliver, exitpriority=0)
