"""The services of ``docker-compose.yml``, and agents and gateways, started as programs on hosts of a network."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.error import URLError
from urllib.request import urlopen

import yaml

from tests.stack.boards import ROOT
from tests.stack.prometheus import Prometheus
from tests.stack.real.network import Host, Network, Server, wait_until
from tests.stack.real.programs import COLLECTOR, JAEGER, PROMETHEUS, program
from tests.stack.test_compose import services

START_SECONDS: Final = 60
"""A loaded machine takes its time."""
PROGRAMS: Final = {"collector": COLLECTOR, "jaeger": JAEGER, "prometheus": PROMETHEUS}
"""What the image of a service in ``docker-compose.yml`` runs."""
COLLECTORS: Final = ROOT / "collectors"


@dataclass(eq=False)
class Running:
    """A service on its host.

    Attributes:
        health: address that answers 200 once it works.
    """

    host: Host
    program: Path
    arguments: Sequence[str]
    environment: Mapping[str, str]
    health: str
    server: Server | None = None

    def start(self) -> Running:
        """Start it, and wait until it works."""
        self.server = self.host.start(self.program, self.arguments, self.environment)
        wait_until(lambda: self._works(self.server), START_SECONDS, f"{self.host.name} works")
        return self

    def stop(self) -> None:
        """End it with SIGTERM."""
        assert self.server is not None
        self.server.stop()

    def kill(self) -> None:
        """End it with SIGKILL."""
        assert self.server is not None
        self.server.kill()

    def url(self, port: int, scheme: str = "http") -> str:
        """Address of one of its ports."""
        return f"{scheme}://{self.host.address}:{port}"

    def figures(self) -> dict[str, float]:
        """A collector's own figures: series and value."""
        with urlopen(f"{self.url(8888)}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    def figure(self, name: str, **labels: str) -> float:
        """The sum of a figure's series with these labels."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(
            value
            for series, value in self.figures().items()
            if series.partition("{")[0] == name and all(label in series for label in wanted)
        )

    def _works(self, server: Server | None) -> bool:
        assert server is not None
        assert server.process.poll() is None, server.output[-3000:]
        try:
            with urlopen(self.health, timeout=5) as response:
                return bool(response.status == 200)
        except (URLError, OSError):
            return False


def composed(network: Network, name: str, files: Mapping[str, Path] | None = None) -> Running:
    """A service of ``docker-compose.yml``: its command, its environment and its mounts; not started yet.

    Args:
        network: it is part of.
        name: of the service.
        files: mounted in place of what the compose file mounts at these paths.
    """
    service = services()[name]
    host = network.add(name)
    for mount in service["volumes"]:
        if mount["type"] == "bind":
            host.mount((files or {}).get(mount["target"], Path(mount["source"])), mount["target"])
        else:
            (host.root / mount["target"].lstrip("/")).mkdir(parents=True, exist_ok=True)
    return Running(
        host, program(PROGRAMS[name]), service["command"], service.get("environment", {}), _health(host, name)
    )


def _health(host: Host, name: str) -> str:
    """What the health check of the compose file asks, from outside."""
    watcher = services()["collector-health" if name == "collector" else name]
    (url,) = [word for word in watcher["healthcheck"]["test"] if word.startswith("http://")]
    return re.sub(r"//[^:/]+", f"//{host.address}", url)


def collector(
    network: Network,
    name: str,
    configuration: str,
    environment: Mapping[str, str],
    *settings: str,
    files: Mapping[str, Path] | None = None,
) -> Running:
    """A collector on a host of its own; not started yet.

    Args:
        network: it is part of.
        name: of the host.
        configuration: ``agent`` or ``gateway``.
        environment: what the configuration asks for.
        settings: ``key=value``, in place of what the configuration has.
        files: mounted, by their paths there.
    """
    host = network.add(name)
    host.mount(loadable(configuration, network.folder), "/etc/otelcol/config.yaml")
    (host.root / "var/lib/otelcol").mkdir(parents=True)
    for path, source in (files or {}).items():
        host.mount(source, path)
    arguments = ["--config=/etc/otelcol/config.yaml", *(f"--set={setting}" for setting in settings)]
    health = f"http://{host.address}:13133/"
    return Running(host, program(COLLECTOR), arguments, environment, health)


def loadable(configuration: str, folder: Path) -> Path:
    """A configuration's file; the agent's without ``resourcedetection``, which not every build of the Collector has."""
    path = COLLECTORS / f"{configuration}.yaml"
    if configuration != "agent":
        return path
    content = yaml.safe_load(path.read_text("utf-8"))
    del content["processors"]["resourcedetection"]
    for pipeline in content["service"]["pipelines"].values():
        pipeline["processors"].remove("resourcedetection")
    copy = folder / "agent.yaml"
    copy.write_text(yaml.safe_dump(content), "utf-8")
    return copy


@dataclass(frozen=True)
class Jaeger:
    """Jaeger's query interface."""

    url: str

    def trace(self, trace_id: str) -> list[dict[str, Any]]:
        """Spans of a trace; none when it is not there."""
        try:
            with urlopen(f"{self.url}/api/traces/{trace_id}", timeout=10) as response:
                return list(json.load(response)["data"][0]["spans"])
        except (URLError, OSError, IndexError):
            return []

    def processes(self, trace_id: str) -> list[dict[str, Any]]:
        """What made the spans of a trace: names, and the attributes of their resources."""
        with urlopen(f"{self.url}/api/traces/{trace_id}", timeout=10) as response:
            return list(json.load(response)["data"][0]["processes"].values())


def hurried(folder: Path, times: int = 20) -> Path:
    """Prometheus' configuration and rules with every duration so many times shorter, but for what is kept."""

    def shorter(found: re.Match[str]) -> str:
        number, unit = found.groups()
        return f"{int(number) * {'s': 1000, 'm': 60_000}[unit] // times}ms"

    copy = folder / "hurried"
    copy.mkdir()
    for source in (COLLECTORS / "prometheus").iterdir():
        # Names of recorded series end in a duration too.
        text = re.sub(r"(?<=[\[ ])(\d+)([sm])(?=[\]\n )])", shorter, source.read_text("utf-8"))
        (copy / source.name).write_text(text.replace("uptime < 300", f"uptime < {300 // times}"), "utf-8")
    return copy


def asked(prometheus: Running) -> Prometheus:
    """The query interface of a running Prometheus."""
    return Prometheus(prometheus.url(9090))
