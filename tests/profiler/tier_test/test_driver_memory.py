"""The driver's view of a process, with a double of NVML."""

from __future__ import annotations

import pynvml
import pytest
import torch

from acestep_otel.profiler.tier_test.memory import DriverView, MemoryWatch, UseBefore
from tests.nvml import GIB, Nvml

CUDA = torch.device("cuda", 0)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    return Nvml(monkeypatch)


def test_a_process_that_is_listed_is_read_from_the_list(nvml: Nvml) -> None:
    before = UseBefore.read()
    nvml.holds(2 * GIB)
    view = DriverView.of(CUDA, before)
    assert view is not None
    assert (view.source, view.used()) == ("nvml_process", 2 * GIB)


@pytest.mark.parametrize("hidden", ["pid", "memory", "list"])
def test_where_the_list_does_not_tell_the_devices_growth_does(nvml: Nvml, hidden: str) -> None:
    before = UseBefore.read()
    nvml.holds(None if hidden == "memory" else 2 * GIB, pid=4_000_000 if hidden == "pid" else None)
    if hidden == "list":
        nvml.processes = None
    view = DriverView.of(CUDA, before)
    assert view is not None
    assert view.source == "nvml_device"
    nvml.used = 4 * GIB
    # One GiB was in use by others before.
    assert view.used() == 3 * GIB


def test_without_nvml_there_is_no_view(monkeypatch: pytest.MonkeyPatch, nvml: Nvml) -> None:
    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    before = UseBefore.read()
    assert before == UseBefore({})
    assert DriverView.of(CUDA, before) is None


def test_off_cuda_there_is_no_view(nvml: Nvml) -> None:
    assert DriverView.of(torch.device("cpu"), UseBefore.read()) is None


class Levels:
    """A view whose level the test sets."""

    source = "nvml_process"

    def __init__(self) -> None:
        self.level: int | None = 1

    def used(self) -> int | None:
        return self.level


def watched(monkeypatch: pytest.MonkeyPatch, levels: list[tuple[int, int | None]]) -> MemoryWatch:
    """A watch that looked at these times and saw these levels."""
    view, times = Levels(), iter([time for time, level in levels if level is not None])
    monkeypatch.setattr("acestep_otel.profiler.tier_test.memory.time.time_ns", lambda: next(times))
    watch = MemoryWatch(view)  # type: ignore[arg-type]
    for _, level in levels:
        view.level = level
        watch.look()
    return watch


def test_the_peak_of_an_interval_counts_the_level_at_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = watched(monkeypatch, [(10, 5), (20, 9), (30, 2), (40, 3)])
    assert watch.peak(25, 27) == 9
    assert watch.peak(30, 35) == 2
    assert watch.peak(30, 40) == 3
    assert watch.peak(0, 100) == 9


def test_without_a_reading_there_is_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watched(monkeypatch, []).peak(0, 10) is None
    assert watched(monkeypatch, [(5, None)]).peak(0, 10) is None
    assert MemoryWatch(None).look() is None


def test_the_thread_reads_periodically() -> None:
    view = Levels()
    with MemoryWatch(view, period=0.001) as watch:  # type: ignore[arg-type]
        view.level = 7
        while watch.peak(0, 2**63) != 7:
            pass
    assert watch.peak(0, 2**63) == 7
