"""The lowest versions that ``pyproject.toml`` declares, as constraints for pip: ``python tests/lowest.py``."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = frozenset({"ruff", "mypy", "types-PyYAML"})
"""They look at the code and do not run with it."""


def lowest() -> Iterator[str]:
    """One line per dependency of the package and of its tests that has a lower bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    for declared in (
        *project["dependencies"],
        *(line for name in ("lora", "zero-code", "serving", "test") for line in extras[name]),
    ):
        if (bound := re.match(r"([\w-]+)>=([\w.]+)", declared)) and bound[1] not in TOOLS:
            yield f"{bound[1]}=={bound[2]}"


if __name__ == "__main__":
    print("\n".join(lowest()))
