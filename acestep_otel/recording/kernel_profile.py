"""The device timeline of one request, on demand: it runs under ``torch.profiler`` while the service continues.

Off unless ``ACESTEP_OTEL_PROFILE_DIR`` names a folder and ``ACESTEP_OTEL_PROFILE_TOKEN`` a secret. A request whose
context was marked (the header ``X-Profile`` with the secret, see ``acestep_otel.forced_sampling.profiling``) runs under
the profiler: its ranges have the names of the spans, its file is named after the trace, and the root span has the
file's location.

Limits: one profile at a time, ``PAUSE`` seconds between two, ``LONGEST`` seconds of one request, ``KEPT`` files. The
file is written after the request, by a thread of its own. Other requests cost one look-up in their context.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from acestep_otel import semconv
from acestep_otel.forced_sampling.profiling import is_profiled
from acestep_otel.recording.instruments import Instruments
from acestep_otel.settings import Settings

logger = logging.getLogger("acestep_otel")

PAUSE: Final = 60.0
"""Seconds from the end of a profile to the start of the next one."""
LONGEST: Final = 60.0
"""Seconds of a request that are profiled; the rest runs as usual. About a million kernels take hundreds of MB."""
KEPT: Final = 20
"""Files in the folder; older ones are deleted."""
_SUFFIX: Final = ".torch-trace.json.gz"
_KERNEL: Final = b'"cat": "kernel"'
Result = TypeVar("Result")


class Profile:
    """The profile of one running request.

    Args:
        path: path of its file.
        finished: called with the outcome: ``stored``, or the class of the error.
    """

    def __init__(self, path: Path, finished: Callable[[str], None]) -> None:
        import torch

        self._path = path
        self._finished = finished
        self._thread = threading.get_ident()
        self._begun = time.monotonic()
        self._device = torch.cuda.is_available()
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._device:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._range: Any = torch.profiler.record_function
        self._profiler: Any = torch.profiler.profile(activities=activities)
        self._profiler.start()
        self.is_running = True

    def run(self, name: str, work: Callable[[], Result]) -> Result:
        """Run a stage in a range of its own, until the profile reaches its longest duration."""
        if not self.is_running:
            return work()
        with self._range(name):
            result = work()
        if time.monotonic() - self._begun > LONGEST:
            self.stop()
        return result

    def stop(self) -> None:
        """Stop, and write the file on another thread; must be called by the thread that started it."""
        if not self.is_running or threading.get_ident() != self._thread:
            return
        self.is_running = False
        try:
            self._profiler.stop()
        except Exception as error:
            self._finished(type(error).__name__)
            return
        # Not a daemon: the process waits for a requested file.
        threading.Thread(target=self._write, name="acestep-otel-profile").start()

    def _write(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._profiler.export_chrome_trace(str(self._path))
            self._profiler = None
            if self._device and not _has_kernels(self._path):
                logger.warning("the profile %s has no kernel: another profiler may be attached", self._path.name)
            self._forget_old()
        except Exception as error:
            logger.warning("a profile could not be written: %s", error)
            self._finished(type(error).__name__)
        else:
            self._finished("stored")

    def _forget_old(self) -> None:
        files = sorted(self._path.parent.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime)
        for old in files[:-KEPT]:
            with contextlib.suppress(OSError):
                old.unlink()


def _has_kernels(path: Path) -> bool:
    with gzip.open(path) as stream:
        return any(_KERNEL in line for line in stream)


class KernelProfiler:
    """Profiles requests whose context is marked.

    Args:
        settings: folder of the files, and its URL.
        instruments: count profiles by outcome.
    """

    def __init__(self, settings: Settings, instruments: Instruments) -> None:
        self._folder = None if settings.profile_folder is None else Path(settings.profile_folder)
        self._url = settings.profile_url
        self._instruments = instruments
        self._lock = threading.Lock()
        self._is_busy = False
        self._next = 0.0

    def begin(self, trace_id: str) -> tuple[Profile, str] | None:
        """Start the profile of the current request if its context is marked; ``None`` otherwise.

        Args:
            trace_id: of the request.

        Returns:
            The profile, and the location of its file.
        """
        if not is_profiled() or self._folder is None:
            return None
        with self._lock:
            if self._is_busy or time.monotonic() < self._next:
                self._count("refused")
                return None
            self._is_busy = True
        name = f"{trace_id}{_SUFFIX}"
        try:
            profile = Profile(self._folder / name, self._finished)
        except Exception as error:
            self._finished(type(error).__name__)
            return None
        place = f"{self._url.rstrip('/')}/{name}" if self._url else str((self._folder / name).absolute())
        return profile, place

    def _finished(self, outcome: str) -> None:
        with self._lock:
            self._is_busy = False
            self._next = time.monotonic() + PAUSE
        self._count(outcome)

    def _count(self, outcome: str) -> None:
        self._instruments.record(semconv.PROFILES, 1, {semconv.OUTCOME: outcome})
