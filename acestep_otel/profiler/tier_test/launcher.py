"""Starts a child process, reads its events, and ensures that it has ended afterwards."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import acestep_otel
from acestep.environment_variables import CUDA_MEMORY
from acestep_otel.profiler.tier_test.plan import Trials
from acestep_otel.profiler.tier_test.protocol import TRACE_PARENT, Event, Finished, decode, encode_job

ALLOCATOR_VARIABLES: Final = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Environment variables: settings of PyTorch's allocator, by its new and its old name."""
ALLOCATOR: Final = "expandable_segments:True"
"""Segments that grow, because fragmentation decides on a small card."""

_MODULE: Final = "acestep_otel.profiler.tier_test.child"
_EXIT_SECONDS: Final = 15.0
"""How long a child that has said everything may take to end: it still sends its metrics."""
_COMPLAINT_LINES: Final = 200


@dataclass(frozen=True, slots=True)
class Ending:
    """How a child process ended.

    Attributes:
        exit_code: negative for a signal.
        timed_out: whether it was killed for taking too long.
        timeout: seconds that a trial had.
        errors: the end of what it wrote to standard error.
    """

    exit_code: int
    timed_out: bool
    timeout: float
    errors: tuple[str, ...] = ()

    @property
    def complaint(self) -> str:
        """The last thing that it said."""
        return next((line.strip() for line in reversed(self.errors) if line.strip()), "")


def child_environment(inherited: Mapping[str, str], job: Trials, *, trace_parent: str | None = None) -> dict[str, str]:
    """The environment of a child: set before it imports PyTorch, which reads most of this once.

    Args:
        inherited: the parent's own.
        job: which card is simulated, and where telemetry goes.
        trace_parent: the parent's span in W3C form.
    """
    environment = {
        **inherited,
        CUDA_MEMORY: str(job.memory),
        # Spans go through the parent, which outlives the child; metrics the child sends itself.
        "OTEL_TRACES_EXPORTER": "none",
        # Also if the package is not installed and the script is in another folder.
        "PYTHONPATH": os.pathsep.join(
            filter(None, (str(Path(acestep_otel.__file__).parent.parent), inherited.get("PYTHONPATH")))
        ),
    }
    if not any(variable in inherited for variable in ALLOCATOR_VARIABLES):
        environment[ALLOCATOR_VARIABLES[0]] = ALLOCATOR
    if job.options.otlp_endpoint is not None:
        environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = job.options.otlp_endpoint
        environment.pop("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", None)
    if job.options.otlp_protocol is not None:
        environment["OTEL_EXPORTER_OTLP_PROTOCOL"] = job.options.otlp_protocol
        environment.pop("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", None)
    if trace_parent is not None:
        environment[TRACE_PARENT] = trace_parent
    return environment


def run_child(job: Trials, environment: Mapping[str, str], timeout: float, receive: Callable[[Event], None]) -> Ending:
    """Run a job in a process of its own and wait for its end.

    In every case, including an interrupt, the process and everything that it started has ended afterwards.

    Args:
        job: what to do.
        environment: of the process.
        timeout: seconds that each trial may take, loading included.
        receive: called with every event, in order.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", _MODULE],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, encoding="utf-8", errors="replace", env=dict(environment),
        # A group of its own: Ctrl-C on the terminal is the parent's to answer, and whole groups can be killed.
        start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    errors: deque[str] = deque(maxlen=_COMPLAINT_LINES)
    readers = [
        _read(process.stdout, lines.put, end=lambda: lines.put(None)),
        _read(process.stderr, errors.append),
    ]
    timed_out = False
    try:
        # A child that is dead already says so by its exit code.
        with suppress(BrokenPipeError):
            process.stdin.write(encode_job(job) + "\n")
            process.stdin.flush()
        timed_out = not _listen(lines, timeout, receive, errors.append)
        if not timed_out:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_EXIT_SECONDS)
    finally:
        _kill_group(process)
        with suppress(BrokenPipeError):
            process.stdin.close()
        for reader in readers:
            # Not for ever: a process that left the group could still hold the pipe.
            reader.join(_EXIT_SECONDS)
        process.stdout.close()
        process.stderr.close()
    return Ending(process.returncode, timed_out, timeout, tuple(errors))


def _listen(
    lines: queue.SimpleQueue[str | None],
    timeout: float,
    receive: Callable[[Event], None],
    complain: Callable[[str], None],
) -> bool:
    """Pass on every event; returns whether the child closed its end in time."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return False
        if line is None:
            return True
        try:
            event = decode(line)
        except ValueError:
            complain(line)
            continue
        if isinstance(event, Finished):
            deadline = time.monotonic() + timeout
        receive(event)


def _read(stream: IO[str], take: Callable[[str], None], end: Callable[[], None] | None = None) -> threading.Thread:
    """Read a pipe line by line in the background, so that it never fills up."""

    def read() -> None:
        for line in stream:
            take(line)
        if end is not None:
            end()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def _kill_group(process: subprocess.Popen[str]) -> None:
    """End the process, and what it may have left running, such as a compiler's workers."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
