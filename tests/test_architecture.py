"""Imports point one way: profiler to layer and engine, the layer to no engine at run time, the engine to neither."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROFILER = "acestep_otel.profiler"


def modules(package: str) -> dict[str, Path]:
    """Every module of a package by its dotted name."""
    found = {}
    for path in (ROOT / package).rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


ENGINE, OTEL = modules("acestep"), modules("acestep_otel")
LAYER = {name: path for name, path in OTEL.items() if not name.startswith(PROFILER)}


def imported(path: Path, *, for_types: bool = True) -> Iterator[str]:
    """What a module imports, at its top and inside its functions; ``TYPE_CHECKING`` blocks on request."""
    skipped: set[ast.AST] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not for_types:
            skipped.update(inner for statement in node.body for inner in ast.walk(statement))
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def below(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("name", ENGINE)
def test_the_engine_imports_no_telemetry(name: str) -> None:
    assert [
        found for found in imported(ENGINE[name]) if below(found, "opentelemetry") or below(found, "acestep_otel")
    ] == []


@pytest.mark.parametrize("name", LAYER)
def test_the_layer_does_not_import_the_profiler(name: str) -> None:
    assert [found for found in imported(LAYER[name]) if below(found, PROFILER)] == []


@pytest.mark.parametrize("name", LAYER)
def test_the_layer_imports_the_engine_for_type_checking_only(name: str) -> None:
    assert [found for found in imported(LAYER[name], for_types=False) if below(found, "acestep")] == []


def test_every_file_that_the_architecture_page_names_exists() -> None:

    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    names = re.findall(r"`([\w/]+(?:\.py|/))`", page)
    roots = [
        ROOT,
        ROOT / "acestep",
        ROOT / "acestep_otel",
        ROOT / "acestep_otel" / "profiler",
        ROOT / "acestep" / "planner",
    ]
    roots += [ROOT / "acestep" / "planner" / "backends"]
    assert [name for name in names if not any((root / name).exists() for root in roots)] == []
