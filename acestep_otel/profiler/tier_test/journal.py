"""The stages of a child process, reported when they begin and end, so that they are known if it is killed.

Spans of a request are created after it, from the device's clock. A killed child does not reach that point, so the same
patches also report the host's time and the driver's view of the memory to the parent immediately.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from acestep_otel import semconv
from acestep_otel.profiler.tier_test.memory import Interval, MemoryWatch
from acestep_otel.profiler.tier_test.protocol import StageMark
from acestep_otel.recording.call import Call, LoadDefinition, RequestDefinition, StageDefinition
from acestep_otel.settings import Detail


class StageJournal:
    """Reports when stages begin and end (a ``StageRecorder``).

    Attributes:
        trial: index of the trial that stages belong to.
        intervals: stages that ended.
    """

    def __init__(self, send: Callable[[StageMark], None], watch: MemoryWatch) -> None:
        self.trial = 0
        self.intervals: list[Interval] = []
        self._send = send
        self._watch = watch

    def request(self, definition: RequestDefinition, call: Call) -> Any:
        """Run a call and report its start and end."""
        return self._run(definition.span, call)

    def stage(self, definition: StageDefinition, call: Call) -> Any:
        """Run a call and report its start and end, except steps and tiles, which are too many."""
        return self._run(definition.span, call) if definition.detail is Detail.STAGE else call.run()

    def load(self, _definition: LoadDefinition, call: Call) -> Any:
        """Run a model's loading and report its start and end."""
        return self._run(semconv.MODEL_LOAD, call)

    def adopt(self, *_details: Any) -> bool:
        """Adopt nothing: a stage that is reported afterwards cannot be interrupted."""
        return False

    def _run(self, name: str, call: Call) -> Any:
        start_ns = self._mark(name, ended=False)
        try:
            return call.run()
        finally:
            self.intervals.append(Interval(semconv.stage_of(name), start_ns, self._mark(name, ended=True)))

    def _mark(self, name: str, *, ended: bool) -> int:
        driver, now_ns = self._watch.look(), time.time_ns()
        self._send(StageMark(name, ended, now_ns, self.trial, driver))
        return now_ns
