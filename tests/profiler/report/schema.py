"""A checker for the part of JSON Schema that the shipped schema uses."""

from __future__ import annotations

from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_KEYWORDS = {
    "$schema", "$defs", "$ref", "title", "description", "format",
    "type", "const", "enum", "required", "properties", "additionalProperties", "items", "anyOf",
}  # fmt: skip


def violations(value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None, at: str = "$") -> list[str]:
    """Every place where ``value`` breaks ``schema``."""
    root = schema if root is None else root
    assert set(schema) <= _KEYWORDS, f"this checker does not know {set(schema) - _KEYWORDS}"
    if "$ref" in schema:
        return violations(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, at)
    if "anyOf" in schema:
        return min((violations(value, rule, root, at) for rule in schema["anyOf"]), key=len)
    if "const" in schema and value != schema["const"]:
        return [f"{at}: {value!r} is not {schema['const']!r}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{at}: {value!r} is none of {schema['enum']}"]
    if "type" in schema:
        names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        kinds = {kind for name in names for kind in _TYPES[name]}
        # JSON's true is an int to Python, but no number.
        if (bool not in kinds) if isinstance(value, bool) else not isinstance(value, tuple(kinds)):
            return [f"{at}: {value!r} is no {' or '.join(names)}"]
    found = []
    if isinstance(value, dict):
        known = schema.get("properties", {})
        found += [f"{at}: {name} is missing" for name in schema.get("required", ()) if name not in value]
        for name, item in value.items():
            rule = known.get(name, schema.get("additionalProperties", True))
            if rule is False:
                found.append(f"{at}: {name} is not expected")
            elif rule is not True:
                found += violations(item, rule, root, f"{at}.{name}")
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            found += violations(item, schema["items"], root, f"{at}[{index}]")
    return found
