"""The cards of a machine: chosen without touching CUDA, and given to processes by their UUID.

A process that spreads work over cards should not hold memory of any, so their driver is asked through NVML.

``0,1,3`` are GPUs as ``nvidia-smi`` counts them, or positions in ``CUDA_VISIBLE_DEVICES`` where that is set. ``all`` is
every one of them. ``cpu:N`` is N processes on the CPU: the same command on a machine without a GPU.
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
"""Environment variable: the GPUs that a process sees."""

MOST_CPU_WORKERS: Final = 64
_FORM: Final = re.compile(r"all|cpu:[1-9][0-9]?|[0-9]{1,3}(,[0-9]{1,3})*")
_EXPLAINED: Final = "choose GPUs by number (0,1,3), all, or cpu:N for N processes on the CPU"
_THREADS: Final = "OMP_NUM_THREADS"


@dataclass(frozen=True, slots=True)
class Card:
    """What one child process runs on.

    Attributes:
        label: its name in tables: ``GPU 3``, ``CPU 0``.
        model: of the GPU, or of the processor.
        uuid: of the GPU, by its driver; ``None`` for a processor.
        host: name of the machine.
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
        """The engine's word for it, in a process that sees this card alone."""
        return "cpu" if self.uuid is None else "cuda"

    def environment(self, inherited: Mapping[str, str], *, cards: int) -> dict[str, str]:
        """The environment of a process that sees this card alone.

        Args:
            inherited: the parent's own.
            cards: processes that run beside each other; those on the CPU share its cores.
        """
        if self.uuid is not None:
            return {**inherited, VISIBLE: self.uuid}
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return {_THREADS: str(max(1, cores // cards)), **inherited}


def choose_cards(gpus: str, device: str = "auto") -> tuple[Card, ...]:
    """The cards that a user names, in that order.

    Args:
        gpus: ``0,1,3``, ``all`` or ``cpu:N``.
        device: the user's word for the device, which must not contradict it.

    Raises:
        DeviceUnavailable: the value means nothing, a card does not exist, or the two options contradict each other.
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
    """Every model of card once: more than one is no basis for a common figure."""
    return tuple(dict.fromkeys(card.model for card in cards))


def host_name() -> str:
    """The machine's name, as the telemetry's resource has it."""
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
    """The driver's handle of an entry of ``CUDA_VISIBLE_DEVICES``: a number, or a UUID or its beginning."""
    if word.isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(word))
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        if _uuid(handle).startswith(word):
            return handle
    # A part of a card (MIG) is not in the list of cards.
    return pynvml.nvmlDeviceGetHandleByUUID(word)


def _uuid(handle: Any) -> str:
    return _text(pynvml.nvmlDeviceGetUUID(handle))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def processor_name() -> str:
    """Name of the processor, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
