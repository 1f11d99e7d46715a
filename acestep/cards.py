"""The cards of a machine: selected without initialising CUDA, and assigned to processes by UUID.

A process that distributes work over cards should not use memory on any of them, so the cards are listed through NVML.

``0,1,3`` are GPUs as ``nvidia-smi`` numbers them, or positions in ``CUDA_VISIBLE_DEVICES`` if that is set. ``all`` is
every GPU. ``cpu:N`` is N processes on the CPU: the same command on a machine without a GPU.
"""

from __future__ import annotations

import os
import platform
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pynvml

from acestep.errors import DeviceUnavailable

VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
"""Environment variable: the GPUs that are visible to a process."""

MOST_CPU_WORKERS: Final = 64
_FORM: Final = re.compile(r"all|cpu:[1-9][0-9]?|[0-9]{1,3}(,[0-9]{1,3})*")
_EXPLAINED: Final = "choose GPUs by number (0,1,3), all, or cpu:N for N processes on the CPU"
_THREADS: Final = "OMP_NUM_THREADS"
"""Environment variable: threads of PyTorch's operations on the host, one for each processor if it is not set."""


@dataclass(frozen=True, slots=True)
class Card:
    """What one child process runs on.

    Attributes:
        label: its name in tables: ``GPU 3``, ``CPU 0``.
        model: model name of the GPU, or of the processor.
        uuid: UUID of the GPU, from its driver; ``None`` for a processor.
        host: host name of the machine.
    """

    label: str
    model: str
    uuid: str | None
    host: str

    def __str__(self) -> str:
        identity = "" if self.uuid is None else f", {self.uuid}"
        return f"{self.label}: {self.model}{identity} on {self.host}"

    @property
    def device(self) -> str:
        """The engine's device name, in a process to which only this card is visible."""
        return "cpu" if self.uuid is None else "cuda"

    def environment(self, inherited: Mapping[str, str], *, cards: int) -> dict[str, str]:
        """The environment of a process to which only this card is visible.

        Args:
            inherited: environment of the parent.
            cards: number of processes that run at the same time and share the processors of the host. Otherwise each
                would have a thread on every processor, and an operation ends with the last of its threads.
        """
        if self.uuid is not None and cards == 1:
            return {**inherited, VISIBLE: self.uuid}
        shared = {_THREADS: str(max(1, processors() // cards)), **inherited}
        return shared if self.uuid is None else {**shared, VISIBLE: self.uuid}


def choose_cards(gpus: str, device: str = "auto") -> tuple[Card, ...]:
    """The cards that the user selected, in that order.

    Args:
        gpus: ``0,1,3``, ``all`` or ``cpu:N``.
        device: the user's choice of device, which must not contradict ``gpus``.

    Raises:
        DeviceUnavailable: the value is invalid, a card does not exist, or the two options contradict each other.
    """
    if not _FORM.fullmatch(gpus):
        raise DeviceUnavailable(f"`gpus` {gpus[:60]!r}: {_EXPLAINED}")
    kind = "cpu" if gpus.startswith("cpu") else "cuda"
    if device not in ("auto", kind):
        raise DeviceUnavailable(f"`gpus` {gpus} and `device` {device} contradict each other: leave out `device`")
    if kind == "cpu":
        return _processors(int(gpus.removeprefix("cpu:")))
    found = _gpus(gpus, os.environ.get(VISIBLE))
    if gpus == "all":
        return tuple(found)
    numbers = [int(number) for number in gpus.split(",")]
    if repeated := [number for number, count in Counter(numbers).items() if count > 1]:
        raise DeviceUnavailable(
            f"`gpus` {gpus} names GPU {repeated[0]} twice: two processes on one GPU would disturb each other"
        )
    if missing := [number for number in numbers if number >= len(found)]:
        there = "only GPU 0" if len(found) == 1 else f"GPUs 0 to {len(found) - 1}"
        raise DeviceUnavailable(f"`gpus` {gpus}: there is no GPU {missing[0]}, {there}")
    return tuple(found[number] for number in numbers)


def models_of(cards: Iterable[Card]) -> tuple[str, ...]:
    """The distinct models of the cards: figures of different models must not be combined."""
    return tuple(dict.fromkeys(card.model for card in cards))


def processors() -> int:
    """Number of processors that this process may run on: fewer than the host's in a container that limits them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host_name() -> str:
    """Host name of the machine, as in the telemetry's resource."""
    return platform.node() or "localhost"


def _processors(count: int) -> tuple[Card, ...]:
    if count > MOST_CPU_WORKERS:
        raise DeviceUnavailable(f"`gpus` cpu:{count}: at most {MOST_CPU_WORKERS} processes")
    return tuple(Card(f"CPU {number}", processor_name(), None, host_name()) for number in range(count))


def _gpus(gpus: str, visible: str | None) -> list[Card]:
    try:
        pynvml.nvmlInit()
        if visible is None:
            handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        else:
            handles = [_visible(word.strip()) for word in visible.split(",") if word.strip()]
        cards = [
            Card(f"GPU {number}", _text(pynvml.nvmlDeviceGetName(handle)), _uuid(handle), host_name())
            for number, handle in enumerate(handles)
        ]
    except pynvml.NVMLError as error:
        raise DeviceUnavailable(
            f"`gpus` {gpus}: no GPU can be listed, the NVIDIA driver reports: {error}; {_EXPLAINED}"
        ) from error
    if not cards:
        hidden = "" if visible is None else f": {VISIBLE}={visible!r} hides all"
        raise DeviceUnavailable(f"`gpus` {gpus}: there is no GPU{hidden}; {_EXPLAINED}")
    return cards


def _visible(word: str) -> Any:
    """The driver's handle for an entry of ``CUDA_VISIBLE_DEVICES``: a number, a UUID, or the beginning of one."""
    if word.isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(word))
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        if _uuid(handle).startswith(word):
            return handle
    # An instance of a card (MIG) is not in the list of cards.
    return pynvml.nvmlDeviceGetHandleByUUID(word)


def _uuid(handle: Any) -> str:
    return _text(pynvml.nvmlDeviceGetUUID(handle))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def processor_name() -> str:
    """Name of the processor, as far as the system reports it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
