"""Imports point one way: profiler to layer and engine, the layer to no engine at run time, the engine to neither.

And in no circle, the imports for type checkers included.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from importlib.util import resolve_name
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


def imports_of(module: str, path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """What a module imports when it is loaded or type-checked; imports inside functions run later and do not count."""
    for node in _at_module_level(ast.parse(path.read_text("utf-8")).body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module if path.name == "__init__.py" else module.rpartition(".")[0]
            origin = resolve_name("." * node.level + (node.module or ""), package) if node.level else str(node.module)
            for alias in node.names:
                yield f"{origin}.{alias.name}" if f"{origin}.{alias.name}" in known else origin


def _at_module_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if isinstance(node, (ast.If, ast.Try)):
            yield from _at_module_level([*node.body, *node.orelse])


def cycle_in(graph: Mapping[str, set[str]]) -> list[str]:
    """A path that ends where it began; empty where there is none."""
    finished: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in finished:
            return []
        for imported in sorted(graph[module]):
            if found := visit(imported, [*path, module]):
                return found
        finished.add(module)
        return []

    return next((found for module in graph if (found := visit(module, []))), [])


@pytest.mark.parametrize("package", ["acestep", "acestep_otel"])
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    """Imports for type checkers count as well; the lazy ones of the public API do not."""
    known = modules(package)
    graph = {
        module: set(imports_of(module, path, known)) & set(known) - {module}
        for module, path in known.items()
        if module != package
    }
    for imported in graph.values():
        imported.discard(package)
    assert cycle_in(graph) == []


def test_a_circle_is_found() -> None:
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
