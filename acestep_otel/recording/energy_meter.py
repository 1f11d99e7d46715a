"""The thread that reads the energy counters of the cards that requests run on."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from acestep_otel.recording.energy import INTERVAL, Reading, Readings
from acestep_otel.recording.gpu_metrics import Card

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("acestep_otel")

_LEARNING_INTERVAL: Final = 0.002
_LEARNING: Final = 0.6
"""Seconds that the period of the counter is looked for: six of the longest that were seen."""


class EnergyMeter:
    """Reads the counters of the cards that requests run on, while they do."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._running: Counter[torch.device] = Counter()
        self._shared: set[torch.device] = set()
        self._meters: dict[torch.device, _Meter] = {}
        self._thread: threading.Thread | None = None

    def begin(self, device: torch.device) -> None:
        """A request starts on a device; nothing happens off CUDA."""
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
        """A request ends; returns whether another one ran on the device at some time during it."""
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
        """What is known of a device's card; ``None`` where the driver keeps no counter."""
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
                # Woken by a request that starts or ends, whose end is worth a reading.
                self._condition.wait(INTERVAL)
            for device in devices:
                if device not in self._running:
                    self._meters[device].read()


class _Meter:
    """The counter of one card."""

    def __init__(self, card: Any) -> None:
        self._card: Any = card
        self.readings: Readings | None = None if card is None else Readings()
        self._learn()

    @classmethod
    def of(cls, device: torch.device) -> _Meter:
        try:
            card = Card.of(device)
            card.energy()
        except Exception:
            # No package, no driver, or a card that keeps no counter (before Volta): its energy is absent, and not 0.
            logger.debug("the energy of %s is not known", device, exc_info=True)
            return cls(None)
        return cls(card)

    def read(self) -> None:
        if self.readings is None:
            return
        try:
            self.readings.add(Reading(time.time_ns(), self._card.energy()))
        except Exception:
            logger.debug("the energy counter could not be read", exc_info=True)

    def _learn(self) -> None:
        """See how often the counter changes."""
        if self.readings is None:
            return
        changes: list[int] = []
        deadline, last = time.monotonic() + _LEARNING, None
        while time.monotonic() < deadline:
            self.read()
            now = self.readings.last
            if now is not None and last is not None and now.joules != last.joules:
                changes.append(now.time_ns)
            last = now
            time.sleep(_LEARNING_INTERVAL)
        gaps = [later - earlier for earlier, later in pairwise(changes)]
        if gaps:
            self.readings.period = median(gaps) / 1e9
