"""The serving example in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import httpx

from benchmarks.collectors import free_port

START_SECONDS: Final = 120
_EXIT_SECONDS: Final = 60


def wait_until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait for the service.

    Raises:
        SystemExit: it ended, or did not start in time.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(f"{url}/healthz").raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.2)
        else:
            return
    raise SystemExit("the service did not start")


@contextmanager
def running_service(options: Sequence[str], environment: Mapping[str, str]) -> Iterator[str]:
    """The service on a free port; yields its URL once it is healthy.

    Args:
        options: of its command line, except the port.
        environment: variables in addition to those of this process.

    Raises:
        SystemExit: it ended, or did not start in time.
    """
    port = free_port()
    command = [sys.executable, "-m", "examples.serving", *options, "--port", str(port)]
    process = subprocess.Popen(command, env={**os.environ, **environment})
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        process.wait(_EXIT_SECONDS)
    finally:
        process.kill()
        process.wait()
