"""What telemetry says it comes from: ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` over a program's defaults.

The specification treats an empty variable as unset. The same holds here for blanks and for an attribute whose value is
empty, so that a template that was not filled in does not take the default away.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final
from urllib.parse import unquote

from opentelemetry.sdk.environment_variables import OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME
from opentelemetry.sdk.resources import OTELResourceDetector, Resource

from acestep_otel.errors import SetupError

_SEPARATOR: Final = ","


def resource_of(defaults: Mapping[str, str]) -> Resource:
    """The resource of this process.

    Args:
        defaults: attributes that the environment may replace, ``service.name`` among them.

    Raises:
        SetupError: ``OTEL_RESOURCE_ATTRIBUTES`` holds a pair without a name or without ``=``.
    """
    name = os.environ.get(OTEL_SERVICE_NAME, "")
    with environment({OTEL_SERVICE_NAME: name.strip(), OTEL_RESOURCE_ATTRIBUTES: _SEPARATOR.join(_pairs())}):
        # Resource.create lets its argument win over the environment; here the environment wins.
        return Resource.create({**defaults, **OTELResourceDetector().detect().attributes})


def _pairs() -> Iterator[str]:
    """Pairs of ``OTEL_RESOURCE_ATTRIBUTES`` that have a value. The error has the number of a pair and not its text."""
    for number, pair in enumerate(os.environ.get(OTEL_RESOURCE_ATTRIBUTES, "").split(_SEPARATOR), start=1):
        name, equals, value = pair.partition("=")
        if pair.strip() and not (equals and name.strip()):
            raise SetupError(f"{OTEL_RESOURCE_ATTRIBUTES}: pair {number} is not of the form name=value")
        if unquote(value).strip():
            yield pair


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
