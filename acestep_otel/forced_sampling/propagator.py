"""Forced tracing: the header by which a caller has one request traced at any sampling ratio.

The header ``X-Force-Trace: true`` travels in the context like the trace itself: the propagator
``acestep_force`` (``OTEL_PROPAGATORS``) reads it from incoming requests and forwards it to called services. The
samplers in ``acestep_otel.forced_sampling.sampler`` look for it.
"""

from __future__ import annotations

from typing import Final

from opentelemetry.context import Context, create_key, get_value, set_value
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)

HEADER: Final = "x-force-trace"
_FORCED: Final = create_key("acestep-force-trace")
_YES: Final = frozenset({"1", "true"})


def is_forced(context: Context | None = None) -> bool:
    """Whether the request of a context is forced to be traced."""
    return bool(get_value(_FORCED, context))


def forced(context: Context | None = None) -> Context:
    """The context of a request that is forced to be traced."""
    return set_value(_FORCED, True, context)


class ForcePropagator(TextMapPropagator):
    """Carries the header; add ``acestep_force`` to ``OTEL_PROPAGATORS``."""

    def extract(
        self, carrier: CarrierT, context: Context | None = None, getter: Getter[CarrierT] = default_getter
    ) -> Context:
        """The context, with the mark where the header says so."""
        values = getter.get(carrier, HEADER) or []
        if any(value.strip().lower() in _YES for value in values):
            return forced(context)
        return Context() if context is None else context

    def inject(
        self, carrier: CarrierT, context: Context | None = None, setter: Setter[CarrierT] = default_setter
    ) -> None:
        """The header, where the context has the mark."""
        if is_forced(context):
            setter.set(carrier, HEADER, "true")

    @property
    def fields(self) -> set[str]:
        """The header."""
        return {HEADER}
