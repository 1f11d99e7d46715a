"""Headless Chromium: the look, the text and the network requests of a page."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from PIL import Image

from tests.programs import program

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--enable-logging=stderr",
    # Nothing leaves the machine, neither for the page nor for the browser's own errands.
    "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip
SECONDS = 60
BROWSER_ITSELF = "not an origin"


@dataclass(frozen=True)
class Visit:
    """What opening a page led to."""

    dom: str
    console: list[str]
    requests: list[str]


def visit(page: Path, width: int = 1100) -> Visit:
    """Open a page in a window of a width and let its scripts run."""
    with TemporaryDirectory() as folder:
        log = Path(folder) / "net.json"
        done = _run(page, folder, f"--window-size={width},900", f"--log-net-log={log}", "--dump-dom")
        events = json.loads(log.read_text("utf-8"))["events"]
    parameters = [event.get("params", {}) for event in events]
    requests = [
        found["url"]
        for found in parameters
        if "url" in found and found.get("initiator", "not an origin") != "not an origin"
    ]
    return Visit(done.stdout, re.findall(r'CONSOLE.*?\] "(.*)", source', done.stderr), requests)


def screenshot(page: Path, scheme: Literal["light", "dark"], width: int = 1100, height: int = 3000) -> Image.Image:
    """What a page looks like in a colour scheme."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "page.png"
        preference = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
        _run(page, folder, preference, f"--window-size={width},{height}", f"--screenshot={path}")
        with Image.open(path) as image:
            return image.convert("RGB")


def _run(page: Path, folder: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("chromium"), *FLAGS, f"--user-data-dir={folder}/profile", *flags, page.as_uri()],
        capture_output=True, text=True, check=True, timeout=SECONDS,
    )  # fmt: skip
