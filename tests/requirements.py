"""The requirements in ``requirements.md`` and the tests that name them.

``python -m tests.requirements`` updates the list. A test names a requirement in its name (``test_r12_...``), its
docstring (``R7, R9`` or ``R95 ... R131``) or a parameter's id.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parent
LIST = TESTS / "requirements.md"

_NAMED = re.compile(r"\bR(\d+)(?:\s*\.\.\.\s*R(\d+))?\b", re.IGNORECASE)
_IN_A_NAME = re.compile(r"(?<=_)r(\d+)(?=_|$)")
_STATEMENT = re.compile(r"^- \*\*R(\d+)\*\* \S")


def named_in(source: str) -> Iterator[tuple[int, str]]:
    """Numbers that the tests of a module name, with the name of the test."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            numbers = [*map(int, _IN_A_NAME.findall(node.name)), *_expanded(ast.get_docstring(node) or "")]
            for decorator in node.decorator_list:
                for part in ast.walk(decorator):
                    if isinstance(part, ast.keyword) and part.arg == "id" and isinstance(part.value, ast.Constant):
                        numbers += _expanded(str(part.value.value))
            yield from ((number, node.name) for number in dict.fromkeys(numbers))


def _expanded(text: str) -> Iterator[int]:
    for first, last in _NAMED.findall(text):
        yield from range(int(first), int(last or first) + 1)


def covering() -> dict[int, dict[str, list[str]]]:
    """The tests of each requirement, by file."""
    found: dict[int, dict[str, list[str]]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for number, name in named_in(path.read_text("utf-8")):
            found.setdefault(number, {}).setdefault(str(path.relative_to(TESTS)), []).append(name)
    return found


def listed(text: str) -> list[int]:
    """Numbers of the statements, in their order."""
    return [int(match[1]) for line in text.splitlines() if (match := _STATEMENT.match(line))]


def updated(text: str) -> str:
    """The list with the tests that name each requirement below its statement; a line ``Not tested: ...`` is kept."""
    tests = covering()
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("  - ") and not line.startswith("  - Not tested: "):
            continue
        lines.append(line)
        if match := _STATEMENT.match(line):
            for file, names in tests.get(int(match[1]), {}).items():
                lines.append(f"  - `{file}`: {', '.join(f'`{name}`' for name in sorted(set(names)))}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    LIST.write_text(updated(LIST.read_text("utf-8")), "utf-8")
