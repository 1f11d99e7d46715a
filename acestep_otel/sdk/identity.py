"""What telemetry says it comes from: ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` over a program's defaults.

The specification treats an empty variable as unset. The same holds here for blanks and for an attribute whose value is
empty, so that a template that was not filled in does not take the default away.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry.sdk.environment_variables import OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME
from opentelemetry.sdk.resources import SERVICE_NAME, Resource

from acestep_otel.sdk.pairs import parse_resource_attributes
from acestep_otel.sdk.variables import variable


def resource_of(defaults: Mapping[str, str]) -> Resource:
    """The resource of this process.

    Args:
        defaults: attributes that the environment may replace, ``service.name`` among them.

    Raises:
        SetupError: ``OTEL_RESOURCE_ATTRIBUTES`` holds what is not a pair.
    """
    given = parse_resource_attributes(OTEL_RESOURCE_ATTRIBUTES, os.environ.get(OTEL_RESOURCE_ATTRIBUTES, ""))
    if (name := variable(OTEL_SERVICE_NAME)) is not None:
        given[SERVICE_NAME] = name
    # The SDK reads both variables once more, and keeps what is empty.
    with environment({OTEL_SERVICE_NAME: "", OTEL_RESOURCE_ATTRIBUTES: ""}):
        return Resource.create({**defaults, **given})


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables inside the block, for what can be told to the SDK in no other way."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
