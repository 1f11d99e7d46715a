"""What is printed: never a reason for a run to lose its files, whoever reads it and whatever it can show."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO

import click


class _Streams:
    """Standard output and standard error of the process, each given up when writing to it fails."""

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
        # A reader that goes away (`| head`) has what it wanted; a full disk has not.
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError) and self.failure is None:
            self.failure = error
        # Python flushes once more at its end; what is left goes nowhere.
        with suppress(OSError, ValueError):
            descriptor = stream.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


_streams = _Streams()


def echo(text: str = "", *, err: bool = False) -> None:
    """Print a line; when that cannot be done any more, the run goes on."""
    _streams.write(text, err=err)


def warn(message: str) -> None:
    """A line on standard error about something that the run goes on without."""
    echo(f"warning: {' '.join(message.split())}", err=True)


def prepare() -> None:
    """Let characters that the terminal cannot show be replaced, and give a process without streams (``>&-``) some."""
    _streams.failure = None
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, _nowhere(descriptor))
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")


def _nowhere(descriptor: int) -> TextIO:
    """A stream at a standard descriptor, so that no file which is opened later takes its place."""
    opened = os.open(os.devnull, os.O_WRONLY)
    if opened != descriptor:
        os.dup2(opened, descriptor)
        os.close(opened)
    return open(descriptor, "w", encoding="utf-8", closefd=False)


def finish() -> str | None:
    """Print what is still held back.

    Returns:
        Why standard output could not be written, as one line; ``None`` when it could, or when its reader went away.
    """
    _streams.flush()
    failure = _streams.failure
    return None if failure is None else f"cannot write standard output: {failure.strerror or failure}"
