"""The thread that reads the energy counters of the cards that requests run on, and the state of the cards."""

from __future__ import annotations

import threading
import time
from collections import Counter
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Final

from acestep_otel.recording.energy import INTERVAL, Condition, Reading, Readings
from acestep_otel.recording.gpu_metrics import Card
from acestep_otel.recording.trace_tree import never_raises

if TYPE_CHECKING:
    import torch

_LEARNING_INTERVAL: Final = 0.002
_LEARNING: Final = 0.6
"""Seconds in which the period of the counter is measured: six of the longest known periods."""


class EnergyMeter:
    """Reads the counters of cards while requests run on them."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._running: Counter[torch.device] = Counter()
        self._shared: set[torch.device] = set()
        self._meters: dict[torch.device, _Meter] = {}
        self._thread: threading.Thread | None = None

    def begin(self, device: torch.device) -> None:
        """Register a request that starts on a device; no effect off CUDA."""
        if device.type != "cuda":
            return
        with self._condition:
            self._running[device] += 1
            if self._running[device] > 1:
                self._shared.add(device)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="acestep-otel-energy", daemon=True)
                self._thread.start()
            self._condition.notify_all()

    def end(self, device: torch.device) -> bool:
        """Unregister a request that ended; returns whether another one ran on the device at some time during it."""
        if device.type != "cuda":
            return False
        with self._condition:
            shared = device in self._shared
            self._running[device] -= 1
            if self._running[device] <= 0:
                del self._running[device]
                self._shared.discard(device)
            self._condition.notify_all()
        return shared

    def readings(self, device: torch.device) -> Readings | None:
        """The readings of a device's card; ``None`` without a driver."""
        meter = self._meters.get(device)
        return None if meter is None else meter.readings

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._running:
                    self._condition.wait()
                devices = list(self._running)
            for device in devices:
                meter = self._meters.get(device)
                if meter is None:
                    meter = self._meters[device] = _Meter.of(device)
                meter.read()
            with self._condition:
                # A request that starts or ends wakes this thread, so that there is a reading near its end.
                self._condition.wait(INTERVAL)
            for device in devices:
                if device not in self._running:
                    self._meters[device].read()


class _Meter:
    """One card.

    Args:
        card: ``None`` if it cannot be queried.
    """

    def __init__(self, card: Card | None) -> None:
        self._card = card
        self.readings: Readings | None = None if card is None else Readings()
        # Before Volta, and on a part of a card, there is no counter: the energy is absent then, and not 0.
        self._counts = card is not None and never_raises(card.energy)() is not None
        if self._counts:
            self._learn()

    @classmethod
    def of(cls, device: torch.device) -> _Meter:
        return cls(never_raises(Card.of)(device))

    def read(self) -> None:
        if self._card is None or self.readings is None:
            return
        now = time.time_ns()
        if self._counts and (joules := never_raises(self._card.energy)()) is not None:
            self.readings.add(Reading(now, joules))
        reasons, share = never_raises(self._card.clock_reasons)(), never_raises(self._card.memory_utilization)()
        self.readings.note(Condition(now, reasons or 0, share or 0.0))

    def _learn(self) -> None:
        """Measure the period of the counter."""
        assert self._card is not None
        assert self.readings is not None
        changes: list[int] = []
        deadline, last = time.monotonic() + _LEARNING, self._card.energy()
        while time.monotonic() < deadline:
            now, joules = time.time_ns(), never_raises(self._card.energy)()
            if joules is not None and joules != last:
                changes.append(now)
                last = joules
                self.readings.add(Reading(now, joules))
            time.sleep(_LEARNING_INTERVAL)
        gaps = [later - earlier for earlier, later in pairwise(changes)]
        if gaps:
            self.readings.period = median(gaps) / 1e9
