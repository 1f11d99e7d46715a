"""The stages of a child process, written down as they begin and end: what is left of them when it is killed.

Spans of a request are made after it, from the device's clock. A child that is killed in the middle of one never gets
there, so the same seams also tell the parent the host's time and the driver's view of the memory at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from acestep_otel import semconv
from acestep_otel.profiler.tier_test.driver_memory import MemoryWatch
from acestep_otel.profiler.tier_test.protocol import StageMark
from acestep_otel.recording.call import Call
from acestep_otel.settings import Detail, Settings


@dataclass(frozen=True, slots=True)
class Interval:
    """When a stage ran: Unix nanoseconds of the host's clock."""

    stage: str
    start_ns: int
    end_ns: int


class StageJournal:
    """Stands in for the tracing layer at the seams (``acestep_otel.recording.request_tracer.StageRecorder``).

    Attributes:
        settings: the defaults, which capture no content.
        trial: index of the trial that stages belong to.
        intervals: stages that ended.
    """

    settings: Final = Settings()

    def __init__(self, send: Callable[[StageMark], None], watch: MemoryWatch) -> None:
        self.trial = 0
        self.intervals: list[Interval] = []
        self._send = send
        self._watch = watch

    def request(self, name: str, call: Call, *_details: Any) -> Any:
        """Run a call and tell when."""
        start_ns = self._mark(name, ended=False)
        try:
            return call.run()
        finally:
            self.intervals.append(Interval(semconv.stage_of(name), start_ns, self._mark(name, ended=True)))

    def stage(self, name: str, call: Call, *, detail: Detail = Detail.STAGE, **_details: Any) -> Any:
        """Run a call and tell when; steps and tiles are too many to tell."""
        return self.request(name, call) if detail is Detail.STAGE else call.run()

    def load(self, call: Call, **_details: Any) -> Any:
        """Run a model's loading and tell when."""
        return self.request(semconv.MODEL_LOAD, call)

    def adopt(self, *_details: Any) -> bool:
        """Leave it to the tracing layer: what is told afterwards is nothing that a child could be killed in."""
        return False

    def _mark(self, name: str, *, ended: bool) -> int:
        driver, now_ns = self._watch.look(), time.time_ns()
        self._send(StageMark(name, ended, now_ns, self.trial, driver))
        return now_ns
