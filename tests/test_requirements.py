"""Every requirement of the benchmark guide has a test that names it: in its name, its docstring or a parameter's id.

Requirements are numbered R1 to R166, in the order of the guide: general (1 to 17), quick start (18 to 22), modes
profile (23 to 35), benchmark (36 to 46), those that write in words (47 to 55) and tier-test (56 to 94), the flags
(95 to 135), the examples (136 to 147), the output (148 to 157), the tips (158 to 164), and what follows from them (165,
166). A test of several says ``R7, R9`` or ``R95 ... R131``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parent
REQUIREMENTS = frozenset(range(1, 167))

NAMED = re.compile(r"\bR(\d+)(?:\s*\.\.\.\s*R(\d+))?\b", re.IGNORECASE)
IN_A_NAME = re.compile(r"(?<=_)r(\d+)(?=_|$)")


def named_in(source: str) -> Iterator[int]:
    """Numbers that the tests of a module name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield from map(int, IN_A_NAME.findall(node.name))
            yield from _expanded(ast.get_docstring(node) or "")
            for decorator in node.decorator_list:
                for part in ast.walk(decorator):
                    if isinstance(part, ast.keyword) and part.arg == "id" and isinstance(part.value, ast.Constant):
                        yield from _expanded(str(part.value.value))


def _expanded(text: str) -> Iterator[int]:
    for first, last in NAMED.findall(text):
        yield from range(int(first), int(last or first) + 1)


def named() -> frozenset[int]:
    return frozenset(number for path in TESTS.rglob("test_*.py") for number in named_in(path.read_text("utf-8")))


def test_every_requirement_is_named_by_a_test() -> None:
    assert sorted(REQUIREMENTS - named()) == []


def test_no_test_names_a_requirement_that_does_not_exist() -> None:
    assert sorted(named() - REQUIREMENTS) == []


def test_names_docstrings_and_ids_count_and_nothing_else() -> None:
    source = '''
"""R1."""
R2 = "R3"

@pytest.mark.parametrize("x", [pytest.param(1, id="r4 r5"), "R6"])
def test_r7_and_r8():
    """R9, R10 ... R12: not R1x, nor B13."""
    "R14"

def helper_r15():
    """R16."""
'''
    assert sorted(named_in(source)) == [4, 5, 7, 8, 9, 10, 11, 12]
