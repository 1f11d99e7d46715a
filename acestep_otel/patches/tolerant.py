"""Reads the input of another library field by field: a field that cannot be read is absent, and affects no other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from acestep_otel import semconv
from acestep_otel.recording.call import Call
from acestep_otel.recording.trace_tree import AttributeValue, logger


def field(owner: Any, *path: str) -> Any:
    """A field of an object or the value of a key of a mapping, however deep; ``None`` where it cannot be read."""
    for name in path:
        try:
            owner = owner[name] if isinstance(owner, Mapping) else getattr(owner, name)
        except Exception:
            return None
    return owner


def argument(call: Call, name: str, otherwise: Any = None) -> Any:
    """An argument of a call by its name.

    Args:
        call: the call, which may not fit the function.
        name: of the argument.
        otherwise: the value if the function has no such argument, or it was not given.
    """
    try:
        return call.arguments.get(name, otherwise)
    except TypeError:
        return call.kwargs.get(name, otherwise)


def readable(values: Mapping[str, Any]) -> dict[str, AttributeValue]:
    """The values that have, or can be read as, the type of their attribute in the semantic conventions.

    Args:
        values: by the name of the attribute; ``None`` for what is not known.
    """
    known: dict[str, AttributeValue] = {}
    for name, value in values.items():
        if value is None:
            continue
        try:
            read = semconv.ATTRIBUTES[name].type(value)
        except Exception:
            logger.debug("no %s: %s cannot be read as one", name, type(value).__name__)
            continue
        if not isinstance(read, float) or math.isfinite(read):
            known[name] = read
    return known


def texts(values: Iterable[Any]) -> tuple[str, ...]:
    """The user's input, as far as it is text or a list of texts."""
    found: list[str] = []
    for value in values:
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += [text for text in value if isinstance(text, str)]
    return tuple(found)


def positive(value: Any) -> float | None:
    """A number above zero, also when it was given as text; ``None`` for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if number > 0 else None
