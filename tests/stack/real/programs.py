"""The servers of the stack as programs: from the folder ``ACESTEP_STACK_BIN``, else from ``PATH``."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

COLLECTOR, JAEGER, PROMETHEUS = "otelcol-contrib", "jaeger", "prometheus"
FOLDER = "ACESTEP_STACK_BIN"


class Missing(Exception):
    """A server's program, or what is needed to run it, is not on this machine; the message says where to get it."""


def program(name: str) -> Path:
    """A server's program.

    Raises:
        Missing: it is in neither place, or too old.
    """
    folder = os.environ.get(FOLDER)
    found = shutil.which(name, path=folder) if folder else shutil.which(name)
    if found is None:
        raise Missing(f"no program {name} in {FOLDER} or PATH: unpack the release of that server there")
    # Debian's package is a Prometheus 2.42.
    if name == PROMETHEUS and not takes_otlp(found):
        raise Missing(f"{found} takes no OTLP, and the stack needs Prometheus 3: set {FOLDER}")
    return Path(found).resolve()


def takes_otlp(prometheus: str) -> bool:
    """Whether a Prometheus has an OTLP receiver; asked of its help, because not every build says its version."""
    said = subprocess.run([prometheus, "--help"], capture_output=True, text=True)
    return "web.enable-otlp-receiver" in said.stdout + said.stderr
