"""Draws docs/images/report.png: the upper part of the page that `make demo` left in output/.

Run `make demo`, then `python -m docs.render_report`.
"""

from __future__ import annotations

from pathlib import Path

from tests.browser import screenshot

ROOT = Path(__file__).resolve().parent.parent
WIDTH, HEIGHT = 1100, 1440


def main() -> None:
    """Draw the picture."""
    image = screenshot(ROOT / "output" / "report.html", "light", WIDTH, HEIGHT)
    # Few colours: a palette makes the file a third as large.
    image.quantize(64).save(ROOT / "docs" / "images" / "report.png", optimize=True)


if __name__ == "__main__":
    main()
