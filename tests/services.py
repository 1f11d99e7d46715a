"""Programs under ``opentelemetry-instrument``, with the structural double of the released package as their engine.

The double starts in half a second, so that faults of processes can be tried one by one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOUBLE = ROOT / "tests" / "patches" / "official_package_double"
INSTRUMENT = Path(sys.executable).with_name("opentelemetry-instrument")
PRELUDE = """
import os, sys, threading, time
from acestep.handler import AceStepHandler
from acestep.inference import GenerationConfig, GenerationParams, create_sample, generate_music
from acestep.llm_inference import LLMHandler
dit, lm = AceStepHandler(), LLMHandler()
def song(steps=4): return generate_music(dit, lm, GenerationParams("c", "l", inference_steps=steps), GenerationConfig())
def say(word): print(word, time.time(), flush=True)
"""


def unpack_double(folder: Path, layout: str = "single") -> Path:
    """The double as a folder for ``PYTHONPATH``."""
    package = folder / "double"
    shutil.copytree(DOUBLE, package)
    shutil.move(package / "handlers" / f"{layout}.py", package / "acestep" / "handler.py")
    return package


def variables(endpoint: str | None, **more: str) -> dict[str, str]:
    """The environment of a service that exports to an endpoint, or nowhere."""
    export = "none" if endpoint is None else "otlp"
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("OTEL_")},
        "OTEL_TRACES_EXPORTER": export,
        "OTEL_METRICS_EXPORTER": export,
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint or "http://127.0.0.1:1",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_BSP_SCHEDULE_DELAY": "300",
        "OTEL_SERVICE_NAME": "studio",
        **more,
    }


class Service:
    """A running program."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def wait_for(self, word: str) -> float:
        """The moment that the program said a word."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(word):
                return float(line.split()[1])
        raise AssertionError(f"the program ended without saying {word!r}: {self.errors()}")

    def end(self, seconds: float = 30) -> tuple[int, float]:
        """Exit code, and the moment of the exit."""
        code = self.process.wait(seconds)
        return code, time.time()

    def errors(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read()


@contextmanager
def service(folder: Path, program: str, endpoint: str | None, **environment: str) -> Iterator[Service]:
    """Run a program under ``opentelemetry-instrument``; it can make a ``song()`` and ``say(word)``."""
    package = unpack_double(folder)
    script = folder / "service.py"
    script.write_text(PRELUDE + program)
    process = subprocess.Popen(
        [INSTRUMENT, sys.executable, script],
        env={
            **variables(endpoint, **environment),
            "PYTHONPATH": os.pathsep.join([str(package), *sys.path[1:], str(ROOT)]),
        },
        cwd=package,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Service(process)
    finally:
        process.kill()
        process.wait(10)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
