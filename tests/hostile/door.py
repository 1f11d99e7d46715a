"""The command line, called in this process: its output, exit code, time and memory."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import pytest

from acestep_otel.profiler.cli import main

SECONDS: Final = 30.0
"""Longest that one input may take, on a busy machine."""
GROWTH: Final = 1.5 * 2**30
"""Bytes that the process may grow by over all inputs of a test."""
count = 0
"""Inputs so far."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a call ended."""

    code: int
    out: str
    err: str


def call(*arguments: str, environment: Mapping[str, str] | None = None) -> Ending:
    """Run the command line and check the invariants for any input."""
    global count
    count += 1
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    started = time.monotonic()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        for name, value in (environment or {}).items():
            patch.setenv(name, value)
        code = main(list(arguments))
    took = time.monotonic() - started
    out.flush()
    err.flush()
    ending = Ending(code, out.buffer.getvalue().decode(), err.buffer.getvalue().decode())  # type: ignore[attr-defined]
    assert took < SECONDS, (arguments, took)
    assert code in (0, 1, 2), ending
    lines = [line for line in ending.err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == (code != 0), ending
    assert all(line.startswith("error: ") and len(line) < 3_000 for line in lines), ending
    assert "Traceback" not in ending.out + ending.err
    return ending


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """The process grows by no more than a bound inside the block."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < GROWTH


def settable(text: str) -> bool:
    """Whether the operating system takes a text as an argument or a variable."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False
