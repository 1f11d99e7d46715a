"""The cards that ``--gpus`` names: chosen without touching CUDA, and given to child processes by their UUID.

``0,1,3`` are GPUs as ``nvidia-smi`` counts them, or positions in ``CUDA_VISIBLE_DEVICES`` where that is set. ``all`` is
every one of them. ``cpu:N`` is N processes on the CPU: the same command on a machine without a GPU.
"""

from __future__ import annotations

import os
import platform
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pynvml

from acestep_otel import semconv
from acestep_otel.errors import SetupError
from acestep_otel.profiler.report.environment import cpu_model

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

    @property
    def attributes(self) -> dict[str, str]:
        """What spans of its requests say about it."""
        hardware = {} if self.uuid is None else {semconv.HW_ID: self.uuid, semconv.HW_NAME: self.model}
        return {semconv.WORKER: self.label, semconv.HOST_NAME: self.host, **hardware}

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


def chosen_cards(gpus: str, device: str) -> tuple[Card, ...]:
    """The cards that an option names, in its order.

    Args:
        gpus: value of ``--gpus``.
        device: value of ``--device``, which must not contradict it.

    Raises:
        SetupError: the value means nothing, a card does not exist, or the two options contradict each other.
    """
    if not _FORM.fullmatch(gpus):
        raise SetupError(f"--gpus {gpus[:60]!r}: {_EXPLAINED}")
    kind = "cpu" if gpus.startswith("cpu") else "cuda"
    if device not in ("auto", kind):
        raise SetupError(f"--gpus {gpus} and --device {device} contradict each other: leave out --device")
    if kind == "cpu":
        return _processors(int(gpus.removeprefix("cpu:")))
    found = _gpus(gpus, os.environ.get(VISIBLE))
    if gpus == "all":
        return tuple(found)
    numbers = [int(number) for number in gpus.split(",")]
    if repeated := [number for number, count in Counter(numbers).items() if count > 1]:
        raise SetupError(f"--gpus {gpus} names GPU {repeated[0]} twice: two processes would measure each other")
    if missing := [number for number in numbers if number >= len(found)]:
        there = "only GPU 0" if len(found) == 1 else f"GPUs 0 to {len(found) - 1}"
        raise SetupError(f"--gpus {gpus}: there is no GPU {missing[0]}, {there}")
    return tuple(found[number] for number in numbers)


def models_of(cards: Iterable[Card]) -> tuple[str, ...]:
    """Every model of card once: more than one is no basis for a common figure."""
    return tuple(dict.fromkeys(card.model for card in cards))


def card_lines(cards: Sequence[Card]) -> list[str]:
    """Every card in full, for above a table that names them in short."""
    return [str(card) for card in cards]


def card_json(card: Card | None) -> dict[str, Any] | None:
    """The entry of a row; ``None`` where the run had the machine's only card."""
    if card is None:
        return None
    return {"label": card.label, "model": card.model, "uuid": card.uuid, "host": card.host}


def host_name() -> str:
    """The machine's name, as the telemetry's resource has it."""
    return platform.node() or "localhost"


def _processors(count: int) -> tuple[Card, ...]:
    if count > MOST_CPU_WORKERS:
        raise SetupError(f"--gpus cpu:{count}: at most {MOST_CPU_WORKERS} processes")
    return tuple(Card(f"CPU {number}", cpu_model(), None, host_name()) for number in range(count))


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
        raise SetupError(
            f"--gpus {gpus}: no GPU can be listed, the NVIDIA driver says: {error}; {_EXPLAINED}"
        ) from error
    if not cards:
        hidden = "" if visible is None else f": {VISIBLE}={visible!r} hides all"
        raise SetupError(f"--gpus {gpus}: there is no GPU{hidden}; {_EXPLAINED}")
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
