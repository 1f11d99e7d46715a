"""Draws docs/images/demo.svg: what the command of `make demo` prints, and nothing else.

Run `python docs/render_demo.py` after `make demo` (which installs what it needs).
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 104


def demo_command() -> list[str]:
    """The command of the Makefile's target, to be run by this Python."""
    makefile = (ROOT / "Makefile").read_text("utf-8").replace("\\\n", " ")
    recipe = re.search(r"^demo:.*\n\t\$\(BIN\)/python (.*)$", makefile, re.MULTILINE)
    if recipe is None:
        raise SystemExit("the Makefile has no target demo that runs Python")
    return [sys.executable, *shlex.split(recipe.group(1))]


def main() -> None:
    """Draw the picture."""
    done = subprocess.run(demo_command(), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    console = Console(record=True, width=WIDTH, force_terminal=True)
    console.print(Text("$ make demo", style="bold"))
    for line in done.stdout.splitlines():
        console.print(Text(line), no_wrap=True, overflow="crop")
    console.save_svg(str(ROOT / "docs" / "images" / "demo.svg"), title="where did the time go?", theme=MONOKAI)


if __name__ == "__main__":
    main()
