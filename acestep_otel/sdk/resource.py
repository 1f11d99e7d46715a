"""The resource of the telemetry: one function for the command line, a service and an agent.

``OTEL_SERVICE_NAME`` wins over ``OTEL_RESOURCE_ATTRIBUTES``, and both over the program's defaults. The specification
treats an empty variable as unset; the same holds here for blanks and for an attribute whose value is empty, so that a
template that was not filled in does not remove a default.
"""

from __future__ import annotations

import platform
import uuid
from collections.abc import Mapping
from typing import Final

from opentelemetry.sdk.resources import HOST_NAME, SERVICE_INSTANCE_ID, SERVICE_NAME, Resource

from acestep_otel.sdk.pairs import parse_resource_attributes
from acestep_otel.sdk.variables import overridden, variable

_ATTRIBUTES: Final = "OTEL_RESOURCE_ATTRIBUTES"
_NAME: Final = "OTEL_SERVICE_NAME"


def resource(service_name: str | None, attributes: Mapping[str, str] | None = None) -> Resource:
    """The resource of this process.

    The instance is unique among concurrent processes, as the convention requires; the machine is ``host.name``.

    Args:
        service_name: where the environment names no service; ``None`` leaves it to the SDK.
        attributes: further defaults.

    Raises:
        SetupError: ``OTEL_RESOURCE_ATTRIBUTES`` has an entry that is no pair.
    """
    defaults = {SERVICE_INSTANCE_ID: str(uuid.uuid4()), HOST_NAME: platform.node() or "localhost", **(attributes or {})}
    if service_name is not None:
        defaults[SERVICE_NAME] = service_name
    given = parse_resource_attributes(_ATTRIBUTES, variable(_ATTRIBUTES) or "")
    if (name := variable(_NAME)) is not None:
        given[SERVICE_NAME] = name
    # The SDK reads both variables once more, and keeps empty values.
    with overridden({_NAME: "", _ATTRIBUTES: ""}):
        return Resource.create({**defaults, **given})
