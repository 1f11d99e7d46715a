"""``doctor --measure-device``: measures the peaks of this device and stores them for the roofline.

The peak of a precision is the best median rate of a square matrix product among several sizes, the bandwidth that of a
copy that is larger than every cache. Both are rates that a program can reach with PyTorch on this device, at its
present clocks and limits: a data sheet's rates are usually higher.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Any, Final

import torch

from acestep.devices import resolve_device
from acestep.planner.backends.base import seconds_of
from acestep_otel.errors import SetupError
from acestep_otel.profiler.errors import RunFailed
from acestep_otel.profiler.files import replacing
from acestep_otel.profiler.run.measurement import setup_errors
from acestep_otel.profiler.terminal import echo
from acestep_otel.recording.gpu_metrics import Card
from acestep_otel.roofline.devices import device_key
from acestep_otel.roofline.peaks import DeviceKey, Measured, document, peaks_file, read_measured, table_peaks
from acestep_otel.roofline.work import Precision

_WARM_UPS: Final = 2
_REPEATS: Final = 15
_PRECISIONS: Final[Mapping[str, tuple[Precision, ...]]] = {
    "cuda": ("bfloat16", "float16", "float32", "int8"),
    "mps": ("float16", "bfloat16", "float32"),
    "cpu": ("float32", "bfloat16"),
}
_WIDTHS: Final[Mapping[str, tuple[int, ...]]] = {
    "cuda": (2048, 4096, 8192, 16384),
    "mps": (1024, 2048, 4096),
    "cpu": (256, 512, 1024, 2048),
}
_COPIED_BYTES: Final[Mapping[str, int]] = {"cuda": 2**30, "mps": 2**28, "cpu": 2**28}


@dataclass(frozen=True, slots=True)
class _Best:
    """The best of several sizes: a rate, and the size that reached it."""

    rate: float
    size: int


def measure_device(device: str = "auto", *, seconds: float = 60.0) -> None:
    """Measure a device, print the peaks and store them.

    A processor is measured twice: with the threads that PyTorch uses by itself, and with the one that ``--tiny`` uses.

    Args:
        device: ``auto``, ``cuda``, ``cuda:N``, ``mps`` or ``cpu``.
        seconds: approximate duration.

    Raises:
        SetupError: there is no such device, or the file of measurements is invalid.
        RunFailed: the device could not be measured.
        OSError: the file could not be written.
    """
    path = peaks_file()
    try:
        kept = read_measured(path)
    except ValueError as error:
        raise SetupError(f"{error}: correct or remove it") from error
    with setup_errors():
        found = resolve_device(device)
    for threads in _thread_counts(found):
        with _threads(threads):
            key = device_key(found)
            echo(f"{key}")
            kept[str(key)] = _measured(found, key, seconds / len(_thread_counts(found)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as stream:
        stream.write(document(kept))
    echo(f"Stored in {path}")


def _thread_counts(device: torch.device) -> Sequence[int]:
    usual = torch.get_num_threads()
    return sorted({1, usual}, reverse=True) if device.type == "cpu" else (usual,)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measured(device: torch.device, key: DeviceKey, seconds: float) -> Measured:
    sheet = table_peaks(key)
    share = seconds / (len(_PRECISIONS[device.type]) + 1)
    operations: dict[Precision, float] = {}
    clocks: list[int] = []
    try:
        for precision in _PRECISIONS[device.type]:
            best = _best_product(device, precision, share)
            if best is None:
                echo(f"  {precision:<10} not computed by this device")
                continue
            operations[precision] = best.rate
            clocks += _clock(device)
            of_sheet = None if sheet is None else sheet.operations.get(precision)
            echo(f"  {precision:<10} {_tera(best.rate)} TFLOP/s  (n = {best.size}{_share(best.rate, of_sheet)})")
        bandwidth = _bandwidth(device, share)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        raise RunFailed(f"{key} could not be measured: {str(error).splitlines()[0]}") from error
    compared = _share(bandwidth, None if sheet is None else sheet.bandwidth)
    echo(f"  {'memory':<10} {_tera(bandwidth)} TB/s     (copy{compared})")
    return Measured(
        operations,
        bandwidth,
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        torch=torch.__version__,
        clock=max(clocks, default=None),
    )


def _tera(rate: float) -> str:
    return f"{rate / 1e12:>8.3g}" if rate < 1e13 else f"{rate / 1e12:>8.1f}"


def _share(rate: float, of: float | None) -> str:
    return "" if of is None else f"; {100 * rate / of:.0f} % of the data sheet"


def _best_product(device: torch.device, precision: Precision, seconds: float) -> _Best | None:
    """The best size; ``None`` where the device does not compute in this precision."""
    best: _Best | None = None
    widths = _WIDTHS[device.type]
    for width in widths:
        try:
            product = _product(device, precision, width)
            duration = _typical(device, product, seconds / len(widths))
        except torch.OutOfMemoryError:
            break
        except RuntimeError:
            # A precision that the device, or this build of PyTorch, lacks.
            return best
        if best is None or 2 * width**3 / duration > best.rate:
            best = _Best(2 * width**3 / duration, width)
        if duration > seconds / len(widths):
            break
    return best


def _product(device: torch.device, precision: Precision, width: int) -> Callable[[], object]:
    if precision == "int8":
        left, right = (torch.ones(width, width, dtype=torch.int8, device=device) for _ in range(2))
        # The layout that the kernel requires of its second operand: column-major.
        right = right.t()
        int_product: Any = torch._int_mm
        return lambda: int_product(left, right)
    dtype: torch.dtype = getattr(torch, precision)
    # Random, because power, and therefore the clock, depends on the number of bits that change.
    left, right = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
    out = torch.empty(width, width, device=device, dtype=dtype)
    return lambda: torch.mm(left, right, out=out)


def _bandwidth(device: torch.device, seconds: float) -> float:
    source = torch.empty(_COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    duration = _typical(device, lambda: target.copy_(source), seconds)
    return 2 * source.nbytes / duration


def _typical(device: torch.device, work: Callable[[], object], seconds: float) -> float:
    """Median duration, on the device's clock, of as many runs as there is time for: one at least."""
    deadline = time.monotonic() + seconds
    for _ in range(_WARM_UPS):
        if (first := seconds_of(device, work)) > seconds:
            return first
    durations = [seconds_of(device, work)]
    while len(durations) < _REPEATS and time.monotonic() < deadline:
        durations.append(seconds_of(device, work))
    return median(durations)


def _clock(device: torch.device) -> list[int]:
    """Present clock of the multiprocessors in MHz; ``None`` if the driver does not report it."""
    if device.type != "cuda":
        return []
    try:
        card = Card.of(device)
        return [int(card.nvml.nvmlDeviceGetClockInfo(card.handle, card.nvml.NVML_CLOCK_SM))]
    except Exception:
        # Without NVML, or on a part of a card, there is no clock to note.
        return []
