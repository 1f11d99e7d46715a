"""Programs that pip does not install: a test that needs a missing one is skipped, and fails in CI."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
import sysconfig
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import pytest

_PYTHON = f"python{sysconfig.get_python_version()}"

PACKAGES = {
    "chromium": "chromium",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "c++": "g++",
    "git": "git",
    "libpython": f"lib{_PYTHON}",
}
"""The Debian package of each program, and of the one library that a program of the tests loads (rotel)."""
SERVERS = "the stack's servers"
"""otelcol-contrib, jaeger and Prometheus 3: in no package registry, so tests that run them are skipped in CI too."""
ALTERNATIVES = {"chromium": ("chromium", "chromium-browser", "google-chrome")}
REASON = "missing program: "


def program(name: str) -> str:
    """Path of a program; if it is missing, the test is skipped, or fails if ``CI`` is set."""
    if found := _found(name):
        return found
    reason = f"{REASON}{name} (apt-get install --no-install-recommends {PACKAGES[name]})"
    if in_ci():
        pytest.fail(f"{reason}; CI is set, so this is not skipped", pytrace=False)
    pytest.skip(reason)


def _found(name: str) -> str | None:
    if name == "libpython":
        path = Path(sysconfig.get_config_var("LIBDIR") or "", f"lib{_PYTHON}.so.1.0")
        return str(path) if path.exists() else ctypes.util.find_library(_PYTHON)
    paths = filter(None, map(shutil.which, ALTERNATIVES.get(name, (name,))))
    return next(filter(_starts, paths) if name in ALTERNATIVES else paths, None)


@lru_cache
def _starts(path: str) -> bool:
    """Whether it is more than Ubuntu's stub for a snap, and not the snap, which cannot read the files of the tests."""
    done = subprocess.run([path, "--version"], capture_output=True, text=True)
    return done.returncode == 0 and " snap" not in done.stdout


def in_ci() -> bool:
    """Whether continuous integration runs the tests: the variable that its services set."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def summary(reasons: Iterable[str]) -> str | None:
    """One line about tests that were skipped because of a missing program, from all skip reasons."""
    missing = Counter(reason.partition(REASON)[2].partition(" (")[0] for reason in reasons if REASON in reason)
    if not missing:
        return None
    counts = ", ".join(f"{name} {count}" for name, count in sorted(missing.items()))
    ways = []
    if packages := " ".join(sorted({PACKAGES[name] for name in missing if name in PACKAGES})):
        ways.append(f"apt-get install --no-install-recommends {packages}")
    if SERVERS in missing:
        ways.append("ACESTEP_STACK_BIN=FOLDER with otelcol-contrib, jaeger and prometheus 3")
    plural = "test" if missing.total() == 1 else "tests"
    return f"{missing.total()} {plural} skipped because a program is missing ({counts}): {'; '.join(ways)}"
