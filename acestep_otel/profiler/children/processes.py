"""Starts child processes, reads the events of all in one loop, and ensures that they have ended afterwards.

A child reads lines from its standard input and writes each event to its standard output at once: whatever ends the
child, its events are already in the pipe.
"""

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
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

from opentelemetry.trace import Span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import acestep_otel
from acestep_otel.profiler.benchmark.matrix import Failure
from acestep_otel.profiler.options import Options

TRACE_PARENT: Final = "TRACEPARENT"
"""Environment variable: the parent's span in W3C form, so that every child's spans are in the parent's trace."""
EXIT_SECONDS: Final = 15.0
"""Seconds that a child may take to end after its last event: it still sends its metrics."""
_COMPLAINT_LINES: Final = 200

Event = TypeVar("Event")


@dataclass(frozen=True, slots=True)
class Ending:
    """How a child process ended.

    Attributes:
        exit_code: negative for a signal.
        timed_out: whether it was killed for taking too long.
        timeout: seconds that it had for what it was doing; ``None`` for any time.
        errors: the end of what it wrote to standard error.
    """

    exit_code: int
    timed_out: bool
    timeout: float | None
    errors: tuple[str, ...] = ()

    @property
    def complaint(self) -> str:
        """The last line that it wrote to standard error."""
        return next((line.strip() for line in reversed(self.errors) if line.strip()), "")

    @property
    def traceback(self) -> str | None:
        """Its standard error, if that contains the traceback of a defect; ``None`` otherwise."""
        return "".join(self.errors) if "Traceback (most recent call last):\n" in self.errors else None

    def failure(self, stage: str | None) -> Failure:
        """The failure of the work that the child had.

        Args:
            stage: its innermost open stage.
        """
        if self.timed_out:
            return Failure("Timeout", f"no result within {self.timeout:g} s: see --tier-timeout", stage)
        if self.exit_code == -signal.SIGKILL:
            message = "killed by SIGKILL: the host ran out of memory, or the process was killed by a user"
            return Failure("Killed", message, stage)
        if self.exit_code < 0:
            return Failure("Killed", f"killed by {signal.Signals(-self.exit_code).name}", stage)
        said = f": {self.complaint}" if self.complaint else ""
        return Failure("Crashed", f"ended with exit code {self.exit_code}{said}", stage)


def telemetry_environment(
    inherited: Mapping[str, str], options: Options, *, trace_parent: str | None = None
) -> dict[str, str]:
    """The environment of a child whose spans go through its parent.

    Args:
        inherited: the parent's own.
        options: of the command line: where telemetry goes.
        trace_parent: the parent's span in W3C form.
    """
    environment = {
        **inherited,
        # Spans go through the parent, which outlives the child; the child itself sends its metrics.
        "OTEL_TRACES_EXPORTER": "none",
        # Also if the package is not installed and the script is in another folder.
        "PYTHONPATH": os.pathsep.join(
            filter(None, (str(Path(acestep_otel.__file__).parent.parent), inherited.get("PYTHONPATH")))
        ),
    }
    send_where_options_say(environment, options)
    if trace_parent is not None:
        environment[TRACE_PARENT] = trace_parent
    return environment


def send_where_options_say(environment: dict[str, str], options: Options) -> None:
    """Change the environment of a worker, so that its metrics go where the command line says.

    Args:
        environment: of the worker; variables for metrics alone would precede those for all signals.
        options: of the command line.
    """
    if options.otlp_endpoint is not None:
        environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = options.otlp_endpoint
        environment.pop("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", None)
    if options.otlp_protocol is not None:
        environment["OTEL_EXPORTER_OTLP_PROTOCOL"] = options.otlp_protocol
        environment.pop("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", None)


def carrier_of(span: Span) -> dict[str, str]:
    """A span in W3C form, by header: what a worker's spans are below."""
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, set_span_in_context(span))
    return carrier


class Child:
    """A child process that was started, and whose output is read in the background.

    It has its own process group: only the parent handles Ctrl-C on the terminal, and the whole group can be killed.
    """

    def __init__(
        self,
        module: str,
        environment: Mapping[str, str],
        timeout: float | None,
        hear: Callable[[Child, str | None], None],
    ) -> None:
        """Start it.

        Args:
            module: module that it runs.
            environment: of the process.
            timeout: seconds until ``proceed`` must have been called; ``None``: no limit.
            hear: called with every line that it writes, and with ``None`` when it has ended.
        """
        self.timeout = timeout
        self.timed_out = False
        self.deadline = float("inf")
        self.proceed()
        self._hear = hear
        self._errors: deque[str] = deque(maxlen=_COMPLAINT_LINES)
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, encoding="utf-8", errors="replace", env=dict(environment),
            start_new_session=True,
        )  # fmt: skip
        # Both pipes are read all the time, so that none fills up.
        self._complaints = threading.Thread(target=self._read_errors, daemon=True)
        self._follower = threading.Thread(target=self._follow, daemon=True)
        self._complaints.start()
        self._follower.start()

    def send(self, line: str) -> None:
        """Send it a line; the exit code reports a child that has already ended."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError, ValueError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def proceed(self) -> None:
        """Restart its time limit for the next piece of work."""
        if self.timeout is not None:
            self.deadline = time.monotonic() + self.timeout

    def complain(self, line: str) -> None:
        """Keep a line that is no event."""
        self._errors.append(line)

    def end(self) -> None:
        """End the process and what it may have left running, such as a compiler's workers."""
        self._kill_group()
        # With a limit: a process that left the group could still have the pipe open.
        self._follower.join(EXIT_SECONDS)
        with suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()

    @property
    def is_followed(self) -> bool:
        """Whether its pipe is still open; its end is then known only by polling."""
        return self._follower.is_alive()

    @property
    def ending(self) -> Ending:
        """How it ended."""
        return Ending(self._process.wait(), self.timed_out, self.timeout, tuple(self._errors))

    def _follow(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._hear(self, line)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_SECONDS)
        self._kill_group()
        self._complaints.join(EXIT_SECONDS)
        self._hear(self, None)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                self._errors.append(line)

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Children(Generic[Event]):
    """Child processes that run in parallel.

    Used as a context manager. After the block, even after an interrupt, every process and everything that it started
    has ended.
    """

    def __init__(self, decode: Callable[[str], Event]) -> None:
        """Start without a child.

        Args:
            decode: decodes a line; raises ``ValueError`` if it is no event.
        """
        self._decode = decode
        self._running: list[Child] = []
        self._lines: queue.SimpleQueue[tuple[Child, str | None]] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()

    @property
    def running(self) -> bool:
        """Whether the end of a child has not been reported yet."""
        return bool(self._running)

    def end(self) -> None:
        """End all that are running."""
        for child in self._running:
            child.end()
        self._running.clear()

    def start(self, module: str, environment: Mapping[str, str], first: str, timeout: float | None = None) -> Child:
        """Start a child and send it the first line.

        Args:
            module: module that it runs.
            environment: of the process.
            first: the line.
            timeout: seconds for each piece of work: see ``Child.proceed``.
        """
        child = Child(module, environment, timeout, lambda child, line: self._lines.put((child, line)))
        self._running.append(child)
        child.send(first)
        return child

    def next_event(self) -> tuple[Child, Event | Ending]:
        """Wait for the next event of any child; the last one of each is its ending. At least one must be running."""
        while True:
            try:
                child, line = self._lines.get(timeout=self._patience())
            except queue.Empty:
                if (overdue := self._end_overdue()) is not None:
                    return overdue
                continue
            if child not in self._running:
                continue
            if line is None:
                return child, self._ended(child)
            try:
                return child, self._decode(line)
            except ValueError:
                child.complain(line)

    def _patience(self) -> float | None:
        nearest = min(child.deadline for child in self._running)
        return None if nearest == float("inf") else max(0.0, nearest - time.monotonic())

    def _end_overdue(self) -> tuple[Child, Ending] | None:
        now = time.monotonic()
        for child in [child for child in self._running if child.deadline <= now]:
            child.timed_out = True
            child.deadline = float("inf")
            child.end()
            # Otherwise its end comes after its earlier events.
            if child.is_followed:
                return child, self._ended(child)
        return None

    def _ended(self, child: Child) -> Ending:
        self._running.remove(child)
        child.end()
        return child.ending
