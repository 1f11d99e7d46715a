"""Signals that end the process, turned into exceptions so that spans and files are finished on the way out."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn

TERMINATED: Final = 128 + signal.SIGTERM
"""Exit code after SIGTERM."""
INTERRUPTED: Final = 128 + signal.SIGINT
"""Exit code after Ctrl-C."""


@contextmanager
def exit_on_terminate() -> Iterator[None]:
    """Inside the block SIGTERM raises ``SystemExit``; Python's default would end the process on the spot."""
    previous = signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def exit_on_terminate_from_now_on() -> None:
    """The same for the rest of the process, where nobody else has decided what SIGTERM does."""
    undecided = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if undecided and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _exit)


def _exit(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(TERMINATED)
