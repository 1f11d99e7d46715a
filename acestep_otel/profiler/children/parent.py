"""A child process's connection to its parent: reads orders, sends events, and ends with the parent."""

from __future__ import annotations

import io
import os
import queue
import sys
import threading
from typing import TextIO


class Parent:
    """The process at the other end of standard input and standard output."""

    def __init__(self) -> None:
        """Keep standard output for events: other output to it goes to standard error."""
        sys.stdout.flush()
        self._answers: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A pipe is buffered in blocks, and ``os._exit`` drops what a library printed just before the end.
            sys.stdout.reconfigure(line_buffering=True)
        self._lock = threading.Lock()
        # Without Python's own buffer, whose lock a thread must not hold while the interpreter shuts down.
        self._input = os.fdopen(os.dup(0), "rb", buffering=0)
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def hear(self) -> str:
        """Wait for the next line from the parent."""
        return self._lines.get()

    def say(self, line: str) -> None:
        """Send a line to the parent, from any thread."""
        with self._lock:
            self._answers.write(line + "\n")
            self._answers.flush()

    def _listen(self) -> None:
        """The parent keeps the pipe open while it lives; without it this process would never stop."""
        while line := self._input.readline():
            self._lines.put(line.decode())
        os._exit(1)
