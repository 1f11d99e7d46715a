"""Who the telemetry comes from: one function for the command line, a service and an agent."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Final

from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource

from acestep_otel.sdk.pairs import parse_resource_attributes
from acestep_otel.sdk.variables import variable

_ATTRIBUTES: Final = "OTEL_RESOURCE_ATTRIBUTES"


def identity(service_name: str, attributes: Mapping[str, str] | None = None) -> dict[str, str]:
    """The resource attributes that this process gives itself, where the environment says nothing else.

    ``OTEL_SERVICE_NAME`` wins over ``OTEL_RESOURCE_ATTRIBUTES``, and both over the defaults. What is empty or blank in
    them is not said, so an identity is never empty.

    Args:
        service_name: the default of ``service.name``.
        attributes: further defaults.

    Raises:
        SetupError: ``OTEL_RESOURCE_ATTRIBUTES`` has an entry that is no pair.
    """
    # The SDK's default instance is random, which would make every run a new one in Prometheus.
    defaults = {SERVICE_NAME: service_name, SERVICE_INSTANCE_ID: platform.node() or "localhost", **(attributes or {})}
    said = parse_resource_attributes(_ATTRIBUTES, variable(_ATTRIBUTES) or "")
    name = variable("OTEL_SERVICE_NAME")
    return {**defaults, **said, **({} if name is None else {SERVICE_NAME: name})}


def resource(service_name: str, attributes: Mapping[str, str] | None = None) -> Resource:
    """The same as a resource of the SDK.

    Raises:
        SetupError: ``OTEL_RESOURCE_ATTRIBUTES`` has an entry that is no pair.
    """
    # Resource.create lets its argument win over the environment, which identity() has read already.
    return Resource.create(identity(service_name, attributes))
