"""The engine's public API: complete, lazy, typed, and without side effects."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import acestep
import acestep_otel
from tests.services import ROOT

IMPORT = """
import json, logging, sys, warnings
before = (len(warnings.filters), logging.Logger.manager.loggerDict.copy())
import acestep
after = (len(warnings.filters), logging.Logger.manager.loggerDict.copy())
print(json.dumps({"modules": sorted(sys.modules), "unchanged": before == after}))
"""


def test_importing_the_package_loads_nothing_and_changes_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT], cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["unchanged"]
    assert [name for name in found["modules"] if name.partition(".")[0] in ("torch", "numpy", "diffusers")] == []
    assert [name for name in found["modules"] if name.startswith("acestep.")] == []


def test_every_public_name_can_be_imported_and_is_listed() -> None:
    assert [name for name in acestep.__all__ if not hasattr(acestep, name)] == []
    assert set(acestep.__all__) <= set(dir(acestep))
    assert {"load_models", "generate_music", "understand_music", "create_sample", "format_sample"} <= set(
        acestep.__all__
    )


def test_type_checkers_and_the_interpreter_see_the_same_names() -> None:
    tree = ast.parse(Path(acestep.__file__).read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imported = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported == acestep._MODULE_OF
    assert sorted(imported) == sorted(acestep.__all__)
    assert (ROOT / "acestep" / "py.typed").is_file()


def test_every_error_of_the_engine_is_public() -> None:
    from acestep import errors

    defined = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert defined <= set(acestep.__all__)


def test_the_first_use_of_a_name_prints_nothing_and_leaves_no_filter() -> None:
    program = (
        "import logging\n"
        "from acestep import load_models\n"
        "loggers = map(logging.getLogger, logging.Logger.manager.loggerDict)\n"
        "added = [filter for logger in loggers for filter in logger.filters if hasattr(filter, 'func')]\n"
        "print([filter for filter in added if filter.func.__module__ == 'acestep.import_noise'])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "torchao" not in done.stderr
    assert "pytree" not in done.stderr
    assert done.stdout == "[]\n"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'make_music'"):
        _ = acestep.make_music  # type: ignore[attr-defined]


def test_the_version_has_one_source() -> None:
    assert acestep.__version__ == acestep_otel.__version__
    for folder in (ROOT, ROOT / "acestep_otel"):
        assert "version" in tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]["dynamic"]
    sources = [path for package in ("acestep", "acestep_otel") for path in (ROOT / package).rglob("*.py")]
    literals = [path for path in sources if re.search(r'^__version__ = "', path.read_text("utf-8"), re.MULTILINE)]
    assert literals == [ROOT / "acestep_otel" / "__init__.py"]
