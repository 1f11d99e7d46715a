"""Peaks of a device: from a table of data sheets, or measured by ``acestep-otel doctor --measure-device``.

A measurement takes precedence over a data sheet. A device without either has no peaks, and its stages have no share.

Data sheets give dense rates with float32 accumulation. Rates marked ``calculated`` are multiprocessors times rate times
boost clock: GeForce boards accumulate in float32 at half the rate of the professional boards of the same chip.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

from acestep_otel.roofline.work import Precision

Source = Literal["measured", "datasheet", "calculated"]

PEAKS_VARIABLE: Final = "ACESTEP_OTEL_DEVICE_PEAKS"
_GIB: Final = 2**30
_OTHER_DEVICES: Final = ("Laptop GPU", "MIG", "NVL", "Max-Q")
"""Words in the names of devices that are slower than the board whose name they contain."""


@dataclass(frozen=True, slots=True)
class Peaks:
    """Ceilings of one device.

    Attributes:
        operations: per second, by precision; a missing precision has no ceiling.
        bandwidth: bytes per second, read and written, of the device's memory.
        source: where they come from.
    """

    operations: Mapping[Precision, float]
    bandwidth: float
    source: Source


@dataclass(frozen=True, slots=True)
class _Board:
    """A row of the table: tera-operations per second and terabytes per second.

    ``half`` is bfloat16 and float16; ``eight`` int8; 0 where the board has none.
    """

    name: str
    memory: tuple[int, ...]
    half: float
    eight: float
    single: float
    bandwidth: float
    source: Source
    bfloat16: bool = True

    def peaks(self) -> Peaks:
        operations: dict[Precision, float] = {"float32": self.single * 1e12, "float16": self.half * 1e12}
        if self.bfloat16:
            operations["bfloat16"] = self.half * 1e12
        if self.eight:
            operations["int8"] = self.eight * 1e12
        return Peaks(operations, self.bandwidth * 1e12, self.source)


_BOARDS: Final = (
    _Board("H100 80GB HBM3", (80,), 989.5, 1979, 67, 3.35, "datasheet"),
    _Board("H100 PCIe", (80,), 756.5, 1513, 51, 2.0, "datasheet"),
    _Board("H200", (141,), 989.5, 1979, 67, 4.8, "datasheet"),
    _Board("A100-SXM4-40GB", (40,), 312, 624, 19.5, 1.555, "datasheet"),
    _Board("A100-PCIE-40GB", (40,), 312, 624, 19.5, 1.555, "datasheet"),
    _Board("A100-SXM4-80GB", (80,), 312, 624, 19.5, 2.039, "datasheet"),
    _Board("A100 80GB PCIe", (80,), 312, 624, 19.5, 1.935, "datasheet"),
    _Board("L40S", (45, 48), 362, 733, 91.6, 0.864, "datasheet"),
    _Board("L4", (23, 24), 121, 242, 30.3, 0.3, "datasheet"),
    _Board("A10", (23, 24), 125, 250, 31.2, 0.6, "datasheet"),
    _Board("RTX 3060", (12,), 25.5, 0, 12.7, 0.36, "calculated"),
    _Board("RTX 3090", (24,), 71.2, 0, 35.6, 0.936, "calculated"),
    _Board("RTX 4060 Ti", (8, 16), 44.1, 0, 22.1, 0.288, "calculated"),
    _Board("RTX 4070", (12,), 58.3, 0, 29.1, 0.504, "calculated"),
    _Board("RTX 4080", (16,), 97.5, 0, 48.7, 0.717, "calculated"),
    _Board("RTX 4090", (24,), 165.2, 0, 82.6, 1.008, "datasheet"),
    _Board("RTX 5070 Ti", (16,), 87.9, 0, 43.9, 0.896, "calculated"),
    _Board("RTX 5080", (16,), 112.6, 0, 56.3, 0.96, "calculated"),
    _Board("RTX 5090", (32,), 209.5, 0, 104.8, 1.792, "calculated"),
    _Board("RTX 6000 Ada Generation", (48,), 364, 0, 91.1, 0.96, "calculated"),
    _Board("Tesla T4", (15, 16), 65, 130, 8.1, 0.32, "datasheet", bfloat16=False),
    _Board("Tesla V100-SXM2", (16, 32), 125, 0, 15.7, 0.9, "datasheet", bfloat16=False),
    _Board("Tesla V100-PCIE", (16, 32), 112, 0, 14, 0.9, "datasheet", bfloat16=False),
    _Board("AMD Instinct MI300X", (192,), 1307, 2615, 163.4, 5.3, "datasheet"),
)
"""Boards whose rates are certain. ``name`` is the device's name without ``NVIDIA`` and ``GeForce`` before it."""


@dataclass(frozen=True, slots=True)
class DeviceKey:
    """The key of stored peaks: a kind of card, or a processor with a number of threads.

    Attributes:
        name: as its driver reports it.
        memory: bytes; 0 for a processor.
        threads: number of threads that PyTorch computes with; 0 for a card.
    """

    name: str
    memory: int = 0
    threads: int = 0

    def __str__(self) -> str:
        if self.threads:
            return f"{self.name}, {self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.name}, {self.memory / _GIB:.0f} GiB"


def table_peaks(key: DeviceKey) -> Peaks | None:
    """The data sheet of a device; ``None`` for one that is not in the table, or is slower than the board of its name.

    A card is identified by its name and its memory, because boards of one name exist with different chips.
    """
    if any(word in key.name for word in _OTHER_DEVICES):
        return None
    name = key.name
    for maker in ("NVIDIA ", "GeForce "):
        name = name.removeprefix(maker)
    for board in _BOARDS:
        if name == board.name and any(abs(key.memory / _GIB - size) <= 0.1 * size for size in board.memory):
            return board.peaks()
    return None


@dataclass(frozen=True, slots=True)
class Measured:
    """The result of one measurement of a device.

    Attributes:
        operations: per second, by precision.
        bandwidth: bytes per second.
        when: date and time, ISO 8601.
        torch: version of PyTorch.
        clock: MHz of the multiprocessors while it was measured; ``None`` if the driver does not report it.
    """

    operations: dict[Precision, float]
    bandwidth: float
    when: str
    torch: str
    clock: int | None = None


def peaks_file(environment: Mapping[str, str] | None = None) -> Path:
    """The file of measurements: that of ``ACESTEP_OTEL_DEVICE_PEAKS``, else one in the user's data folder."""
    environment = os.environ if environment is None else environment
    if named := environment.get(PEAKS_VARIABLE, "").strip():
        return Path(named)
    data = environment.get("XDG_DATA_HOME", "").strip()
    return (Path(data) if data else Path.home() / ".local" / "share") / "acestep-otel" / "devices.json"


def read_measured(path: Path) -> dict[str, Measured]:
    """All measurements by device; none if there is no file.

    Raises:
        ValueError: it is not a file of measurements.
        OSError: it cannot be read.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return {}
    try:
        return {name: _measured(entry) for name, entry in json.loads(text)["devices"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a file of device peaks: {error!r}") from error


def _measured(entry: Mapping[str, Any]) -> Measured:
    measured = Measured(
        operations={precision: float(rate) for precision, rate in entry["operations"].items()},
        bandwidth=float(entry["bandwidth"]),
        when=str(entry["when"]),
        torch=str(entry["torch"]),
        clock=None if entry.get("clock") is None else int(entry["clock"]),
    )
    if measured.bandwidth <= 0 or not all(rate > 0 for rate in measured.operations.values()):
        raise ValueError("a peak is not above zero")
    return measured


def document(measured: Mapping[str, Measured]) -> str:
    """Measurements as the text of their file."""
    entries = {name: asdict(entry) for name, entry in measured.items()}
    return json.dumps({"version": 1, "devices": entries}, indent=2) + "\n"


@lru_cache(maxsize=64)
def peaks_of(key: DeviceKey) -> Peaks | None:
    """The ceilings of a device; ``None`` if they are not known. Read once per process.

    Raises:
        ValueError: the file of measurements is invalid.
        OSError: it cannot be read.
    """
    if (measured := read_measured(peaks_file()).get(str(key))) is not None:
        return Peaks(measured.operations, measured.bandwidth, "measured")
    return table_peaks(key)
