"""Output to the terminal: a closed or limited terminal never costs a run its files."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO

import click


class _Streams:
    """Standard output and standard error of the process; each is no longer used after a write to it failed."""

    def __init__(self) -> None:
        self.failure: OSError | None = None

    def write(self, text: str, *, err: bool) -> None:
        try:
            click.echo(text, err=err)
        except OSError as error:
            self._give_up(sys.stderr if err else sys.stdout, error)

    def flush(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError) as error:
                self._give_up(stream, error)

    def _give_up(self, stream: TextIO, error: Exception) -> None:
        # A closed reader (`| head`) is no failure; a full disk is one.
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError) and self.failure is None:
            self.failure = error
        # Python flushes again at exit; the remaining output is discarded.
        with suppress(OSError, ValueError):
            descriptor = stream.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


_streams = _Streams()


def echo(text: str = "", *, err: bool = False) -> None:
    """Print a line; if that fails, the run continues."""
    _streams.write(text, err=err)


def warn(message: str) -> None:
    """Print a warning on standard error; the run continues."""
    echo(f"warning: {' '.join(message.split())}", err=True)


def prepare() -> None:
    """Replace characters that the terminal cannot show, and open streams for a process without any (``>&-``)."""
    _streams.failure = None
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, _nowhere(descriptor))
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")


def _nowhere(descriptor: int) -> TextIO:
    """A stream at a standard descriptor, so that no file that is opened later gets this descriptor."""
    opened = os.open(os.devnull, os.O_WRONLY)
    if opened != descriptor:
        os.dup2(opened, descriptor)
        os.close(opened)
    return open(descriptor, "w", encoding="utf-8", closefd=False)


def finish() -> str | None:
    """Flush both streams.

    Returns:
        Why standard output could not be written, as one line; ``None`` if it could, or if its reader closed it.
    """
    _streams.flush()
    failure = _streams.failure
    return None if failure is None else f"cannot write standard output: {failure.strerror or failure}"
