"""A real Prometheus with the product's configuration, at other addresses and faster."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from benchmarks.collectors import free_port
from tests.programs import program

CONFIGURATION = Path(__file__).resolve().parents[2] / "collectors" / "prometheus"
INTERVAL = 1


@dataclass(frozen=True)
class Prometheus:
    """A running server."""

    url: str

    def query(self, expression: str, later: float = 0, at: float | None = None) -> list[dict[str, Any]]:
        """Samples of an expression, now or so many seconds from now, or at a Unix time."""
        return list(self._get("query", query=expression, time=(at or time.time()) + later)["result"])

    def query_range(self, expression: str, seconds: float, step: float, later: float = 0) -> list[dict[str, Any]]:
        """Series of an expression over the time that ends now or later."""
        end = time.time() + later
        return list(self._get("query_range", query=expression, start=end - seconds, end=end, step=step)["result"])

    def exemplars(self, expression: str) -> list[dict[str, Any]]:
        now = time.time()
        return list(self._get("query_exemplars", query=expression, start=now - 3600, end=now))

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def label_values(self, name: str, selector: str) -> list[str]:
        return list(self._get(f"label/{name}/values", **{"match[]": selector}))

    def wait_for(self, expression: str, seconds: float = 30) -> list[dict[str, Any]]:
        """Samples of an expression as soon as there are any."""
        return wait_until(lambda: self.query(expression), seconds, expression)

    def _get(self, path: str, **parameters: Any) -> Any:
        with urlopen(f"{self.url}/api/v1/{path}?{urlencode(parameters)}", timeout=10) as response:
            answer = json.load(response)
        assert answer["status"] == "success", answer
        return answer["data"]


def wait_until(found: Callable[[], Any], seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := found():
            return answer
        time.sleep(0.2)
    raise TimeoutError(f"not within {seconds:g} s: {what}")


@contextmanager
def running(folder: Path, targets: dict[str, tuple[str, str]]) -> Iterator[Prometheus]:
    """Start a server with the product's configuration.

    Args:
        folder: for its files.
        targets: host and port, and path, of each scrape job of the configuration.
    """
    configuration = yaml.safe_load((CONFIGURATION / "prometheus.yml").read_text("utf-8"))
    # Debian's Prometheus takes no OTLP: what a collector would send it is scraped instead.
    for newer in ("otlp", "storage"):
        del configuration[newer]
    configuration["scrape_configs"].insert(0, {"job_name": "otel-collector", "honor_labels": True})
    configuration["global"] = {"scrape_interval": f"{INTERVAL}s", "evaluation_interval": f"{INTERVAL}s"}
    configuration["rule_files"] = [str(CONFIGURATION / name) for name in configuration["rule_files"]]
    assert {job["job_name"] for job in configuration["scrape_configs"]} == set(targets)
    for job in configuration["scrape_configs"]:
        address, job["metrics_path"] = targets[job["job_name"]]
        job["static_configs"] = [{"targets": [address]}]
    with running_with(folder, configuration) as prometheus:
        yield prometheus


@contextmanager
def running_with(folder: Path, configuration: dict[str, Any]) -> Iterator[Prometheus]:
    """Start a server with a configuration of the test's own."""
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(configuration), "utf-8")
    url = f"http://127.0.0.1:{free_port()}"
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={url.removeprefix('http://')}",
                "--enable-feature=exemplar-storage",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(lambda: _ready(url), 30, "Prometheus is ready")
        yield Prometheus(url)
    finally:
        process.terminate()
        process.wait(20)


def _ready(url: str) -> bool:
    try:
        with urlopen(f"{url}/-/ready", timeout=2) as response:
            return bool(response.status == 200)
    except (URLError, ConnectionError):
        return False
