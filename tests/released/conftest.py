"""The released package, run in an environment of its own: `make test-released` makes it and runs these tests.

``ACESTEP_RELEASED_PYTHON`` names another environment's interpreter. ``ACESTEP_RELEASED_SOURCE`` names a checkout of the
package, which then takes the place of the installed one.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.released.checkpoint import write_checkpoints
from tests.services import ROOT

PRELUDE = (Path(__file__).parent / "prelude.py").read_text("utf-8")
SECONDS = 400


@dataclass(frozen=True)
class Released:
    """The package and what it runs on.

    Attributes:
        python: interpreter of its environment.
        source: checkout in the place of the installed package.
        project: folder with the miniature checkpoints, which programs run in.
    """

    python: Path
    source: Path | None
    project: Path

    def environment(self, **more: str) -> dict[str, str]:
        """Variables of a process that imports the package and never this repository's engine."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PYTHON", "ACESTEP"))
        }
        return {
            **kept,
            "PYTHONPATH": "" if self.source is None else str(self.source),
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(self.project / "modules"),
            "TQDM_DISABLE": "1",
            "OMP_NUM_THREADS": "1",
            "ACESTEP_PROJECT_ROOT": str(self.project),
            **more,
        }

    def run(self, program: str, **environment: str) -> dict[str, Any]:
        """Run a program after the prelude, and return what it reported."""
        done = subprocess.run(
            [self.python, "-c", f"{PRELUDE}\n{program}\nreport()"],
            env=self.environment(**environment),
            cwd=self.project,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return {**json.loads(done.stdout.splitlines()[-1]), "log": done.stderr}


@pytest.fixture(scope="session")
def released(tmp_path_factory) -> Released:
    python = Path(os.environ.get("ACESTEP_RELEASED_PYTHON", ROOT / ".venv-released" / "bin" / "python"))
    source = Path(os.environ["ACESTEP_RELEASED_SOURCE"]) if "ACESTEP_RELEASED_SOURCE" in os.environ else None
    if not python.exists():
        pytest.skip(f"no environment with the released package at {python}: `make test-released` makes it")
    project = tmp_path_factory.mktemp("released") / "project"
    found = Released(python, source, project)
    project.mkdir()
    where = subprocess.run(
        [python, "-c", "import acestep.handler; print(acestep.__path__[0])"],
        env=found.environment(),
        cwd=project,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    if where.returncode:
        pytest.skip(f"the released package cannot be imported in {python}: {where.stderr.strip().splitlines()[-1]}")
    models = Path(where.stdout.splitlines()[-1]) / "models"
    write_checkpoints(project, models if (models / "turbo").exists() else None)
    return found


@pytest.fixture(scope="session")
def run(released) -> Callable[..., dict[str, Any]]:
    return released.run
