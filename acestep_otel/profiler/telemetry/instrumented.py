"""The tracing layer, switched on for one mode's run with the command line's own providers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from acestep_otel.errors import SetupError
from acestep_otel.instrumentor import AceStepInstrumentor
from acestep_otel.profiler.telemetry.providers import Telemetry
from acestep_otel.settings import Detail, Settings

_SETTLE_SECONDS: Final = 60.0
"""A device that has not finished by then has hung; the report then says less."""


def detail_level(word: str | None) -> Detail:
    """The level of the command line, else that of the environment.

    Raises:
        SetupError: a word that is no level, or another wrong value in the environment's settings.
    """
    try:
        settings = Settings.from_environment()
        return settings.detail if word is None else Detail.parse(word)
    except ValueError as error:
        raise SetupError(str(error)) from error


@contextmanager
def instrumented(telemetry: Telemetry, detail: Detail) -> Iterator[None]:
    """Trace the engine inside the block.

    Under ``opentelemetry-instrument`` the engine is traced already, into providers that the report cannot read: the
    command line's providers take over.
    """
    instrumentor = AceStepInstrumentor()
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()
    instrumentor.instrument(
        tracer_provider=telemetry.tracer_provider, meter_provider=telemetry.meter_provider, detail=detail
    )
    try:
        yield
    finally:
        instrumentor.uninstrument()


def settle() -> None:
    """Wait until all that has ended is with the providers: telemetry is made beside the run."""
    AceStepInstrumentor().flush(_SETTLE_SECONDS)
