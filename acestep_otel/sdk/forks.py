"""A fork waits for exports that are in progress.

The child inherits the locks that another thread holds at that moment, among them those of the exporters' HTTP clients.
No thread of the child releases them: its own exports would wait for them until its telemetry is dropped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from acestep_otel.recording.background_emission import follow_forks

_FORK_SECONDS: Final = 1.0
"""Seconds that a fork waits at most, for all exporters together: a collector may not respond."""


class ExportsBeforeForks:
    """Holds the locks of the providers' exports while the process forks, for as long as this object exists.

    Args:
        providers: of traces, metrics and logs. Those that are not the SDK's are left alone.
    """

    def __init__(self, providers: Sequence[Any]) -> None:
        self._providers = providers
        self._held: dict[int, list[threading.Lock]] = {}
        follow_forks(self._hold, self._release, self._release)

    def _hold(self) -> None:
        deadline = time.monotonic() + _FORK_SECONDS
        self._held[threading.get_ident()] = [
            lock
            for provider in self._providers
            for lock in _export_locks(provider)
            if lock.acquire(timeout=max(0.0, deadline - time.monotonic()))
        ]

    def _release(self) -> None:
        for lock in self._held.pop(threading.get_ident(), []):
            lock.release()


def _export_locks(provider: Any) -> Iterator[threading.Lock]:
    """The locks that the SDK holds while it exports; it has no public name for them."""
    spans = getattr(getattr(provider, "_active_span_processor", None), "_span_processors", ())
    logs = getattr(getattr(provider, "_multi_log_record_processor", None), "_log_record_processors", ())
    batches = [getattr(processor, "_batch_processor", None) for processor in (*spans, *logs)]
    for exporting in (*batches, *getattr(provider, "_metric_readers", ())):
        if (lock := getattr(exporting, "_export_lock", None)) is not None:
            yield lock
