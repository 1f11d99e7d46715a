"""The header by which a caller profiles one request: ``X-Profile``, with ``ACESTEP_OTEL_PROFILE_TOKEN`` as its value.

Without the secret in the environment no header is accepted, and a header with another value is ignored. The mark
travels in the context, through queues and threads, and is not forwarded to services that this one calls. A profiled
request is traced at any sampling ratio, because its root span contains the location of the file.
"""

from __future__ import annotations

import hmac
import os
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

from acestep_otel.forced_sampling.propagator import forced
from acestep_otel.settings import PROFILE_TOKEN_VARIABLE

HEADER: Final = "x-profile"
_PROFILED: Final = create_key("acestep-profile")


def is_profiled(context: Context | None = None) -> bool:
    """Whether the request of a context is to run under the profiler."""
    return bool(get_value(_PROFILED, context))


def profiled(context: Context | None = None) -> Context:
    """The context of a request that is to run under the profiler, for callers whom the program itself trusts."""
    return set_value(_PROFILED, True, forced(context))


class ProfilePropagator(TextMapPropagator):
    """Reads the header of incoming requests, and never forwards it."""

    def extract(
        self, carrier: CarrierT, context: Context | None = None, getter: Getter[CarrierT] = default_getter
    ) -> Context:
        """The context, with the mark where the header has the secret."""
        known = Context() if context is None else context
        secret = os.environ.get(PROFILE_TOKEN_VARIABLE, "").strip()
        given = getter.get(carrier, HEADER) or []
        if secret and any(hmac.compare_digest(value.strip().encode(), secret.encode()) for value in given):
            return profiled(known)
        return known

    def inject(
        self, carrier: CarrierT, context: Context | None = None, setter: Setter[CarrierT] = default_setter
    ) -> None:
        """Do nothing: the secret is valid for this service only."""

    @property
    def fields(self) -> set[str]:
        """The header."""
        return {HEADER}
