"""Commands that docs/dashboards.md and collectors/README.md show, run as far as a machine without Docker can."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from acestep_otel.profiler.cli import main
from benchmarks.collectors import free_port, rotel_agent, rotel_environment
from tests.programs import program
from tests.receivers import grpc_receiver
from tests.stack.boards import ROOT
from tests.stack.test_compose import COMPOSE, PASSWORD, compose
from tests.test_docs import made_small

ENDPOINT = "http://localhost:4317"


def commands() -> list[str]:
    found = []
    for document in ("docs/dashboards.md", "collectors/README.md"):
        for block in re.findall(r"```bash\n(.*?)```", (ROOT / document).read_text("utf-8"), re.DOTALL):
            found += block.strip().splitlines()
    return found


@pytest.mark.parametrize("line", commands())
def test_every_command_runs(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        monkeypatch.setenv(*words.pop(0).split("=", 1))
    match words:
        case ["python", "profile_inference.py", *arguments]:
            with grpc_receiver() as received:
                here = [received.endpoint if word == ENDPOINT else word for word in arguments]
                here = [str(free_port()) if word == "9464" else word for word in here]
                assert main(made_small(here)) == 0
                assert ENDPOINT not in arguments or received.span_names()
        case ["docker", "compose", *options, "up", "-d"]:
            assert compose(*options, environment=PASSWORD).returncode == 0
        case ["docker", "compose", "run", *rest]:
            listed = subprocess.run([COMPOSE, "run", "--help"], capture_output=True, text=True, check=True).stdout
            assert all(word in listed for word in rest if word.startswith("--") and "config" not in word)
        case ["pip", "install", package]:
            assert find_spec(package) is not None
        case ["rotel-agent", "start", *options]:
            program("libpython")
            listed = subprocess.run(
                [rotel_agent(), "start", "--help"], env=rotel_environment(), capture_output=True, text=True, check=True
            ).stdout
            assert all(word in listed for word in options if word.startswith("--"))
        case _:
            raise AssertionError(f"shown, and not known here: {line}")


def test_links_of_the_documents_lead_somewhere() -> None:
    for document in ("docs/dashboards.md", "collectors/README.md", "README.md"):
        path = ROOT / document
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text("utf-8")):
            assert target.startswith("http") or (path.parent / target).exists(), f"{document}: {target}"


def test_the_boards_module_can_be_run() -> None:
    """As the document says, without a warning that would worry."""
    done = subprocess.run(
        [sys.executable, "-c", "import grafana.build"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
