"""Every configuration is loaded by the program that it is for."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.stack.boards import ROOT
from tests.stack.real.programs import COLLECTOR, program
from tests.stack.real.services import COLLECTORS, loadable

VARIABLES = {
    "TLS_CERT_FILE": "/tls/cert.pem",
    "TLS_KEY_FILE": "/tls/key.pem",
    "GATEWAY_PEERS": "gateway",
    "GATEWAY_ENDPOINT": "gateway:4317",
    "TRACES_ENDPOINT": "jaeger:4317",
    "METRICS_ENDPOINT": "http://prometheus:9090/api/v1/otlp/v1/metrics",
}


def validated(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program(COLLECTOR), "validate", f"--config={path}"],
        env={**os.environ, **VARIABLES},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", ["local", "agent", "gateway"])
def test_the_collector_takes_it(name: str, tmp_path: Path) -> None:
    done = validated(loadable(name, tmp_path))
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr + done.stdout


def test_the_collector_refuses_what_is_wrong(tmp_path: Path) -> None:
    """The check above can fail."""
    broken = tmp_path / "gateway.yaml"
    broken.write_text((COLLECTORS / "gateway.yaml").read_text("utf-8").replace('port: "14317"', "port: 14317"), "utf-8")
    done = validated(broken)
    assert done.returncode != 0
    assert "port" in done.stderr


def test_every_variable_of_a_configuration_is_known_here() -> None:
    for path in COLLECTORS.glob("*.yaml"):
        for name, default in re.findall(r"\$\{env:(\w+)(:-)?", path.read_text("utf-8")):
            assert default or name in VARIABLES, f"{path.relative_to(ROOT)}: {name}"
