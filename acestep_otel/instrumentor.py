"""Traces ACE-Step 1.5 inference with OpenTelemetry.

Usage
-----
Zero code, with the package ``opentelemetry-distro``: ``opentelemetry-instrument python service.py``. In code::

    from acestep_otel.instrumentor import AceStepInstrumentor

    AceStepInstrumentor().instrument()
    ...
    AceStepInstrumentor().uninstrument()

Three targets are traced when they are imported: this engine (``acestep``), ``diffusers.AceStepPipeline``, and the
released package ``ace-step``. They are wrapped from outside and do not depend on this package. Without instrumentation
nothing is patched. Times on a CUDA device come from events on the stream; nothing here synchronises. A
request that is sampled out is counted and not recorded.

Configuration
-------------
``instrument`` takes ``tracer_provider``, ``meter_provider``, ``detail`` (a ``Detail`` or its name), ``run_id`` and
``songs`` (``path``, or a URL, to put the songs of a request on its root span).
Defaults come from the global providers and from the environment variables in ``acestep_otel.settings``.

Spans of a request are created on a background thread when it ends. ``flush`` waits for them; ``uninstrument`` and the
exit of the process do so automatically.

API
---
"""

from __future__ import annotations

import atexit
import uuid
from collections.abc import Collection
from dataclasses import replace
from typing import Any, Final

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor
from opentelemetry.metrics import get_meter
from opentelemetry.trace import get_tracer

from acestep_otel import __version__, semconv
from acestep_otel.patches import diffusers, engine, official_package
from acestep_otel.patches.patcher import Patcher
from acestep_otel.recording.request_tracer import RequestTracer
from acestep_otel.settings import Detail, Settings

_FLUSH_SECONDS: Final = 1.0


class AceStepInstrumentor(BaseInstrumentor):
    """Switches the tracing of ``acestep`` on and off."""

    _patcher: Patcher | None = None
    _tracer: RequestTracer | None = None

    def instrumentation_dependencies(self) -> Collection[str]:
        """No distribution has to be installed: modules are patched when and if they are imported."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        settings = _settings(kwargs.get("detail"))
        if (songs := kwargs.get("songs")) is not None:
            settings = replace(settings, songs=songs)
        if settings.detail is Detail.OFF:
            return
        tracer = RequestTracer(
            get_tracer("acestep_otel", __version__, kwargs.get("tracer_provider"), schema_url=semconv.SCHEMA_URL),
            get_meter("acestep_otel", __version__, kwargs.get("meter_provider"), schema_url=semconv.SCHEMA_URL),
            settings,
            run_id=kwargs.get("run_id") or uuid.uuid4().hex,
        )
        self._patcher = Patcher(tracer)
        self._patcher.apply(engine.PATCHES, engine.is_imported)
        self._patcher.apply(official_package.patches(tracer), lambda: not engine.is_imported())
        self._patcher.apply(diffusers.patches(tracer))
        self._tracer = tracer
        # Providers that exist by now shut down after this.
        atexit.register(tracer.flush, _FLUSH_SECONDS)

    def _uninstrument(self, **_kwargs: Any) -> None:
        if self._patcher is not None:
            self._patcher.remove()
        if self._tracer is not None:
            self.flush()
            atexit.unregister(self._tracer.flush)
            self._tracer.close()
        self._patcher = self._tracer = None

    def flush(self, timeout: float = _FLUSH_SECONDS) -> None:
        """Wait until the providers have the spans and metrics of every completed request.

        They are created on a background thread, a millisecond or two after the request, so that it does not wait.

        Args:
            timeout: seconds, at most.
        """
        if self._tracer is not None:
            self._tracer.flush(timeout)

    def finish(self, timeout: float = _FLUSH_SECONDS) -> None:
        """Before the process exits: end requests that are still running, and do what ``flush`` does.

        Args:
            timeout: seconds, at most.
        """
        if self._tracer is not None:
            self._tracer.finish(timeout)


def _settings(detail: Detail | str | None) -> Settings:
    settings = Settings.from_environment_or_default()
    if detail is None:
        return settings
    return replace(settings, detail=Detail.parse(detail) if isinstance(detail, str) else detail)
