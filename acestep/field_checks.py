"""Checks of the types of a request's fields, made once on entry: annotations are not enforced at run time."""

from __future__ import annotations

import types
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from acestep.documents import is_text, shown
from acestep.errors import InvalidRequest

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path (pathlib.Path)"}


def require_types(value: object, within: str = "") -> None:
    """Check that every field of a dataclass has its annotated type, and that texts and paths are valid text.

    An ``int`` is accepted as a ``float``; a ``bool`` is accepted as neither.

    Args:
        value: an instance of a dataclass of ``acestep.types``.
        within: name of the field that contains it, with a dot; the prefix of each name in a message.

    Raises:
        InvalidRequest: the first field of another type.
    """
    kind: Any = type(value)
    hints = _hints(kind)
    for field in fields(value):  # type: ignore[arg-type]
        name, given = f"{within}{field.name}", getattr(value, field.name)
        _require(f"`{name}`", given, hints[field.name])
        if is_dataclass(given):
            require_types(given, f"{name}.")


def require_text(name: str, value: object) -> None:
    """Check that an argument is text.

    Raises:
        InvalidRequest: it is not text, or contains a lone surrogate.
    """
    _require(f"`{name}`", value, str)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _require(name: str, value: object, kind: Any) -> None:
    if not _is_a(value, kind):
        text = repr(value)
        raise InvalidRequest(f"{name} is {shown(text if len(text) <= 60 else text[:60] + '…')}, not {_described(kind)}")
    if isinstance(value, str | Path) and not is_text(str(value)):
        raise InvalidRequest(f"{name} is not valid UTF-8: it contains a lone surrogate or an invalid byte")


def _is_a(value: object, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return any(_is_a(value, option) for option in get_args(kind))
    if origin is Literal:
        # The allowed values are checked where they are used.
        return isinstance(value, str)
    if origin is tuple:
        first, *rest = get_args(kind)
        if not isinstance(value, tuple):
            return False
        if rest == [...]:
            return all(_is_a(item, first) for item in value)
        return len(value) == 1 + len(rest) and all(map(_is_a, value, (first, *rest)))
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float)
    return isinstance(value, kind)


def _described(kind: Any) -> str:
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    words = [_words(option) for option in options if option is not type(None)]
    return " or ".join([*words, *(["None"] if type(None) in options else [])])


def _words(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return f"a tuple of {_words(get_args(kind)[0])}"
    return "text" if get_origin(kind) is Literal else _WORDS.get(kind, getattr(kind, "__name__", str(kind)))
