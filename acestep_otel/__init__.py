"""OpenTelemetry around ACE-Step 1.5 inference: where did the time and the VRAM go?

For a service without an OpenTelemetry SDK, one call sets it up from the standard ``OTEL_*`` variables:

    >>> import acestep_otel
    >>> telemetry = acestep_otel.configure(service_name="songs")
    >>> telemetry.close()  # at the end of the process

A process that has an SDK traces the engine with it:

    >>> acestep_otel.AceStepInstrumentor().instrument()

The public API is ``acestep_otel.__all__`` and, for tests of a service, ``acestep_otel.testing``. Every other name, in
any module of this package, is private and may change in any release.

Importing this package loads nothing else and changes no setting of the process: names are imported when they are first
used. ``configure``, ``ForcibleSampler``, ``forcible_traceidratio`` and ``testing`` need ``opentelemetry-sdk``; the rest
needs the API alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_MODULES = {
    "acestep_otel.errors": ("SetupError",),
    "acestep_otel.forced_sampling.propagator": ("ForcePropagator",),
    "acestep_otel.forced_sampling.sampler": ("ForcibleSampler", "forcible_traceidratio"),
    "acestep_otel.instrumentor": ("AceStepInstrumentor",),
    "acestep_otel.queue_telemetry": ("CANCELLED", "QueueTelemetry", "Waiting"),
    "acestep_otel.sdk.service": ("ServiceTelemetry", "configure"),
    "acestep_otel.settings": ("Detail",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

if TYPE_CHECKING:
    from acestep_otel.errors import SetupError
    from acestep_otel.forced_sampling.propagator import ForcePropagator
    from acestep_otel.forced_sampling.sampler import ForcibleSampler, forcible_traceidratio
    from acestep_otel.instrumentor import AceStepInstrumentor
    from acestep_otel.queue_telemetry import CANCELLED, QueueTelemetry, Waiting
    from acestep_otel.sdk.service import ServiceTelemetry, configure
    from acestep_otel.settings import Detail

__all__ = [
    "CANCELLED",
    "AceStepInstrumentor",
    "Detail",
    "ForcePropagator",
    "ForcibleSampler",
    "QueueTelemetry",
    "ServiceTelemetry",
    "SetupError",
    "Waiting",
    "configure",
    "forcible_traceidratio",
]


def __getattr__(name: str) -> object:
    try:
        module = _MODULE_OF[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
