"""Utilisation and memory of the GPUs, by their driver: whole cards, with all processes.

The driver is queried through NVML, which neither waits for the device nor uses CUDA, and only while metrics are being
collected. Without NVML (no NVIDIA driver, or no package ``nvidia-ml-py``) these metrics are absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self
from weakref import WeakKeyDictionary

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from acestep_otel import semconv
from acestep_otel.recording.instruments import MetricAttributes, observe
from acestep_otel.recording.trace_tree import never_raises

if TYPE_CHECKING:
    import torch


_VENDOR: Final = "NVIDIA"
"""NVML reports no other task."""


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU, as its driver reports it.

    Attributes:
        nvml: the module that queries the driver.
        handle: the driver's handle of the card.
        uuid: identifies it.
        name: of its model.
        driver: version of its driver.
    """

    nvml: Any
    handle: Any
    uuid: str
    name: str
    driver: str = ""

    @classmethod
    def of(cls, device: torch.device) -> Self:
        """The card of a CUDA device that is already in use.

        Raises:
            ImportError: the package ``nvidia-ml-py`` is missing.
            pynvml.NVMLError: there is no driver, or it does not list the card.
        """
        import pynvml

        pynvml.nvmlInit()
        uuid = uuid_of(device)
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        name, driver = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlSystemGetDriverVersion()
        return cls(pynvml, handle, uuid, str(name), str(driver))

    @property
    def attributes(self) -> MetricAttributes:
        """Attributes of every metric of the card."""
        known = {semconv.HW_ID: self.uuid, semconv.HW_MODEL: self.name, semconv.HW_VENDOR: _VENDOR}
        return {**known, semconv.HW_DRIVER_VERSION: self.driver} if self.driver else known

    def utilization(self) -> float:
        """Share of the driver's last sampling period (a second at most) in which a kernel ran, 0 ... 1."""
        return float(self.nvml.nvmlDeviceGetUtilizationRates(self.handle).gpu) / 100

    def memory_used(self) -> int:
        """Bytes in use, by all processes."""
        return int(self.nvml.nvmlDeviceGetMemoryInfo(self.handle).used)

    def memory_limit(self) -> int:
        """Bytes that the card has."""
        return int(self.nvml.nvmlDeviceGetMemoryInfo(self.handle).total)

    def memory_utilization(self) -> float:
        """Share of the memory that is in use, 0 ... 1."""
        return self.memory_used() / self.memory_limit()

    def clock_reasons(self) -> int:
        """The reasons for the present clocks, as NVML's bits."""
        current = getattr(self.nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
        # The name of the function before version 12.
        ask = current or self.nvml.nvmlDeviceGetCurrentClocksThrottleReasons
        return int(ask(self.handle))

    def corrected_errors(self) -> int:
        """Memory errors that ECC corrected, since the card was reset."""
        return self._errors(self.nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED)

    def uncorrected_errors(self) -> int:
        """Memory errors that ECC could not correct, since the card was reset."""
        return self._errors(self.nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED)

    def _errors(self, kind: int) -> int:
        return int(self.nvml.nvmlDeviceGetTotalEccErrors(self.handle, kind, self.nvml.NVML_VOLATILE_ECC))

    def energy(self) -> float:
        """Joules that the card has used since its driver was loaded, for all processes.

        Raises:
            pynvml.NVMLError: the card keeps no such counter (before Volta, or a part of a card).
        """
        return float(self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)) / 1e3


def uuid_of(device: torch.device) -> str:
    """A CUDA device's UUID as the driver writes it; PyTorch leaves the prefix off."""
    import torch

    return f"GPU-{str(torch.cuda.get_device_properties(device).uuid).removeprefix('GPU-')}"


class GpuWatch:
    """Observes the cards that requests and loaded models have run on."""

    @classmethod
    def of(cls, meter: Meter) -> GpuWatch:
        """The watch of a meter. Its instruments stay with the meter; a second one of a name would not be read."""
        if (watch := _WATCHES.get(meter)) is None:
            watch = _WATCHES.setdefault(meter, cls(meter))
        return watch

    def __init__(self, meter: Meter) -> None:
        self._cards: dict[torch.device, Card | None] = {}
        self._devices: set[torch.device] = set()
        general = {semconv.HW_GPU_TASK: "general"}
        observe(meter, semconv.HW_GPU_UTILIZATION, self._reader(Card.utilization, general))
        observe(meter, semconv.HW_GPU_MEMORY_USAGE, self._reader(Card.memory_used, {}))
        observe(meter, semconv.HW_GPU_MEMORY_LIMIT, self._reader(Card.memory_limit, {}))
        observe(meter, semconv.HW_GPU_MEMORY_UTILIZATION, self._reader(Card.memory_utilization, {}))
        gpu = {semconv.HW_TYPE: "gpu"}
        observe(meter, semconv.HW_ENERGY, self._reader(Card.energy, gpu))
        corrected, uncorrected = (
            self._reader(count, {**gpu, semconv.ERROR_TYPE: kind})
            for kind, count in (("corrected", Card.corrected_errors), ("uncorrected", Card.uncorrected_errors))
        )
        observe(meter, semconv.HW_ERRORS, corrected, uncorrected)

    def add(self, device: torch.device) -> None:
        """Start to observe a device's card; makes no query, and has no effect off CUDA."""
        if device.type == "cuda":
            self._devices.add(device)

    def forget(self) -> None:
        """Observe nothing until a card is added again; an instrument cannot be removed from its meter."""
        self._devices = set()
        self._cards = {}

    def _reader(
        self, figure: Callable[[Card], float], attributes: MetricAttributes
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def read(_: CallbackOptions) -> Iterator[Observation]:
            for card in self._known():
                # Some cards do not report everything: a part of one (MIG) has no utilisation.
                if (value := never_raises(figure)(card)) is not None:
                    yield Observation(value, {**card.attributes, **attributes})

        return read

    def _known(self) -> list[Card]:
        for device in self._devices - self._cards.keys():
            self._cards[device] = never_raises(Card.of)(device)
        # Two names of one device ("cuda", "cuda:0") are one card.
        return list({card.uuid: card for card in self._cards.values() if card is not None}.values())


_WATCHES: Final[WeakKeyDictionary[Meter, GpuWatch]] = WeakKeyDictionary()
