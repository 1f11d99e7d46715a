"""Collectors to measure against: one that takes everything, and one that is not there."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final

_START_SECONDS: Final = 15


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def live_collector() -> Iterator[str]:
    """A rotel process that takes telemetry over gRPC and throws it away; yields its endpoint.

    Raises:
        SystemExit: rotel is not installed.
    """
    package = find_spec("rotel")
    if package is None or package.origin is None:
        raise SystemExit("the live collector is rotel, and it is not installed: pip install '.[test]'")
    port = free_port()
    process = subprocess.Popen(
        [
            Path(package.origin).with_name("rotel-agent"),
            "start",
            *("--otlp-grpc-endpoint", f"127.0.0.1:{port}"),
            *("--otlp-http-endpoint", f"127.0.0.1:{free_port()}"),
            *("--exporter", "blackhole"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextmanager
def dead_collector() -> Iterator[str]:
    """A port where nobody listens."""
    yield f"http://127.0.0.1:{free_port()}"


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"the collector did not start within {_START_SECONDS} s")
