"""Collectors to measure against: one that accepts everything, and a closed port."""

from __future__ import annotations

import os
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final

_START_SECONDS: Final = 15


def free_port() -> int:
    """A closed port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def live_collector() -> Iterator[str]:
    """A collector that accepts telemetry over gRPC and discards it; yields its endpoint.

    Raises:
        SystemExit: rotel is not installed, or did not start.
    """
    with rotel("--exporter", "blackhole") as (grpc_endpoint, _):
        yield grpc_endpoint


@contextmanager
def rotel(*options: str, ports: tuple[int, int] | None = None) -> Iterator[tuple[str, str]]:
    """A rotel process; yields its endpoints for gRPC and HTTP.

    Args:
        options: in addition to those for its ports.
        ports: for gRPC and HTTP; any free ports when not given.

    Raises:
        SystemExit: rotel is not installed, or did not start.
    """
    grpc_port, http_port = ports or (free_port(), free_port())
    process = subprocess.Popen(
        [
            *(rotel_agent(), "start"),
            *("--otlp-grpc-endpoint", f"127.0.0.1:{grpc_port}"),
            *("--otlp-http-endpoint", f"127.0.0.1:{http_port}"),
            *options,
        ],
        env=rotel_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(grpc_port)
        _wait_for(http_port)
        yield f"http://127.0.0.1:{grpc_port}", f"http://127.0.0.1:{http_port}"
    finally:
        process.kill()
        process.wait()


def rotel_agent() -> Path:
    """The program.

    Raises:
        SystemExit: it is not installed.
    """
    package = find_spec("rotel")
    if package is None or package.origin is None:
        raise SystemExit("the live collector is rotel, and it is not installed: pip install '.[test]'")
    return Path(package.origin).with_name("rotel-agent")


def rotel_environment() -> dict[str, str]:
    """Its environment: it needs Python's shared library, which only a system's own Python has on the library path."""
    folders = (sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH"))
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(filter(None, folders))}


@contextmanager
def dead_collector() -> Iterator[str]:
    """The address of a closed port."""
    yield f"http://127.0.0.1:{free_port()}"


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"the collector did not start within {_START_SECONDS} s")
