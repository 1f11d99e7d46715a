"""The tracing layer's public API: complete, lazy, typed, and without side effects; which package imports which."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import acestep_otel
from tests.services import ROOT

IMPORT = """
import json, logging, os, sys, threading, warnings
before = (len(warnings.filters), [*logging.Logger.manager.loggerDict], {**os.environ}, threading.active_count())
import acestep_otel
after = (len(warnings.filters), [*logging.Logger.manager.loggerDict], {**os.environ}, threading.active_count())
print(json.dumps({"modules": sorted(sys.modules), "unchanged": before == after}))
"""
PUBLIC = {
    "CANCELLED",
    "AceStepInstrumentor", "Detail", "ForcePropagator", "ForcibleSampler", "QueueTelemetry", "ServiceTelemetry",
    "SetupError", "Waiting", "configure", "forcible_traceidratio",
}  # fmt: skip


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_these_are_the_public_names() -> None:
    assert set(acestep_otel.__all__) == PUBLIC
    assert sorted(acestep_otel.__all__) == sorted(set(acestep_otel.__all__))
    assert set(dir(acestep_otel)) >= PUBLIC
    assert [name for name in PUBLIC if not hasattr(acestep_otel, name)] == []


def test_type_checkers_and_the_interpreter_see_the_same_names() -> None:
    tree = ast.parse(Path(acestep_otel.__file__).read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imported = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported == acestep_otel._MODULE_OF
    assert set(imported) == PUBLIC
    assert (ROOT / "acestep_otel" / "py.typed").is_file()


def test_importing_the_package_loads_nothing_and_changes_nothing() -> None:
    found = json.loads(run(IMPORT))
    assert found["unchanged"]
    assert [name for name in found["modules"] if name.partition(".")[0] in ("torch", "opentelemetry", "wrapt")] == []
    assert [name for name in found["modules"] if name.startswith("acestep")] == ["acestep_otel"]


@pytest.mark.parametrize("name", ["AceStepInstrumentor", "Detail", "ForcePropagator", "QueueTelemetry", "SetupError"])
def test_a_name_that_needs_no_sdk_loads_neither_the_sdk_nor_pytorch(name: str) -> None:
    program = f"from acestep_otel import {name}; import sys; print({{'torch', 'opentelemetry.sdk'}} & {{*sys.modules}})"
    assert run(program) == "set()"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'instrument'"):
        _ = acestep_otel.instrument  # type: ignore[attr-defined]


def test_the_public_names_are_declared_once() -> None:
    assert acestep_otel.__doc__ is not None
    assert "The public API is ``acestep_otel.__all__``" in acestep_otel.__doc__


def imports_of(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module that a file imports, also inside functions, and whether only for type checkers."""
    tree = ast.parse(path.read_text("utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in for_types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield str(node.module), id(node) in for_types
            yield from ((f"{node.module}.{alias.name}", id(node) in for_types) for alias in node.names)


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


LAYER = [path for path in modules("acestep_otel") if "profiler" not in path.relative_to(ROOT).parts]


@pytest.mark.parametrize("path", LAYER, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_layer_imports_neither_the_profiler_nor_at_run_time_the_engine(path: Path) -> None:
    found = list(imports_of(path))
    assert [name for name, _ in found if name.startswith("acestep_otel.profiler")] == []
    assert [name for name, for_types in found if re.match(r"acestep(\.|$)", name) and not for_types] == []


def test_the_engine_imports_neither_opentelemetry_nor_the_layer() -> None:
    paths = modules("acestep")
    assert len(paths) > 30
    found = [(path, name) for path in paths for name, _ in imports_of(path)]
    assert [pair for pair in found if pair[1].partition(".")[0] in ("opentelemetry", "acestep_otel")] == []


def test_the_serving_example_needs_the_public_api_alone() -> None:
    found = {name for path in modules("examples/serving") for name, _ in imports_of(path)}
    used = {name for name in found if name.startswith("acestep_otel")}
    assert used <= {"acestep_otel", *(f"acestep_otel.{name}" for name in PUBLIC)}
    assert "acestep_otel" in used


def blocks() -> list[str]:
    shown = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    return [block for block in shown if "acestep_otel" in block]


def test_readme_shows_how_to_set_up_to_end_and_to_test() -> None:
    shown = "".join(blocks())
    assert all(name in shown for name in ("acestep_otel.configure(", "telemetry.close()", "capture_telemetry("))


@pytest.mark.parametrize("block", blocks())
def test_every_block_of_the_readme_runs(block: str) -> None:
    run(block)
