"""The end of the process: telemetry is delivered within a time limit, and dropped after it.

The SDK's own shutdown waits up to half a minute per signal for a collector that does not respond. SIGTERM becomes an
exception, so that spans and files are finished on the way out.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Final, NoReturn

SHUTDOWN_SECONDS: Final = 4.0
"""Longest wait for all signals together, so that an exit is delayed by less than five seconds."""
_ABORT_SECONDS: Final = 0.5
"""Of these, the seconds that an exporter may take to return after it was shut down."""


def deliver_within(
    timeout: float,
    deliveries: Sequence[Callable[[float], object]],
    aborts: Sequence[Callable[[], object]] = (),
    *,
    report: Callable[[str], None],
) -> None:
    """Deliver in parallel, in threads that do not keep the process alive.

    Args:
        timeout: seconds for everything.
        deliveries: shutdowns of providers; each receives its number of seconds.
        aborts: shutdowns of exporters, which make a delivery that hangs come back.
        report: called with one line about what could not be delivered.
    """
    deadline = time.monotonic() + timeout
    seconds = max(0.0, timeout - _ABORT_SECONDS)
    running = [thread for deliver in deliveries if (thread := _in_background(partial(deliver, seconds), report))]
    _join(running, deadline - _ABORT_SECONDS)
    if any(thread.is_alive() for thread in running):
        report(f"telemetry was not delivered within {timeout:g} s and is dropped")
        aborting = [thread for abort in aborts if (thread := _in_background(abort, report))]
        _join([*aborting, *running], deadline)


def _in_background(action: Callable[[], object], report: Callable[[str], None]) -> threading.Thread | None:
    """The thread that runs it; none where no thread can be started and it was run at once."""

    def run() -> None:
        try:
            action()
        except Exception as error:
            report(f"telemetry could not be delivered: {error}")

    thread = threading.Thread(target=run, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        # Exit handlers of Python 3.12.0 to 3.12.2 get no threads: the exit then takes as long as the SDK's does.
        run()
        return None
    return thread


def _join(threads: Sequence[threading.Thread], deadline: float) -> None:
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


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
    """The same for the rest of the process, unless a handler of SIGTERM is installed."""
    undecided = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if undecided and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _exit)


def _exit(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(TERMINATED)
