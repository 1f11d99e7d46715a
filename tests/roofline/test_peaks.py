"""The peaks of a device, and the share of them that some work reached."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep_otel.roofline import peaks as peaks_module
from acestep_otel.roofline.peaks import (
    PEAKS_VARIABLE,
    DeviceKey,
    Measured,
    Peaks,
    document,
    peaks_file,
    peaks_of,
    read_measured,
    table_peaks,
)
from acestep_otel.roofline.roofline import Roofline
from acestep_otel.roofline.work import Part, Work

GIB = 2**30
H100 = DeviceKey("NVIDIA H100 80GB HBM3", memory=int(79.1 * GIB))
PEAKS = Peaks({"bfloat16": 100.0, "float32": 10.0}, bandwidth=50.0, source="datasheet")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "devices.json"
    monkeypatch.setenv(PEAKS_VARIABLE, str(path))
    peaks_of.cache_clear()
    return path


@pytest.mark.parametrize(
    ("name", "memory", "half", "bandwidth"),
    [
        ("NVIDIA H100 80GB HBM3", 79.1, 989.5, 3.35),
        ("NVIDIA A100-SXM4-80GB", 79.2, 312, 2.039),
        ("NVIDIA L4", 22.0, 121, 0.3),
        ("NVIDIA GeForce RTX 4090", 23.5, 165.2, 1.008),
        ("NVIDIA GeForce RTX 4060 Ti", 15.6, 44.1, 0.288),
    ],
)
def test_a_board_is_known_by_its_name_and_memory(name: str, memory: float, half: float, bandwidth: float) -> None:
    found = table_peaks(DeviceKey(name, memory=int(memory * GIB)))
    assert found is not None
    assert found.operations["float16"] == half * 1e12
    assert found.bandwidth == bandwidth * 1e12


@pytest.mark.parametrize(
    ("name", "memory"),
    [
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 10),
        ("NVIDIA H200 NVL", 141),
        ("NVIDIA GeForce RTX 3060", 8),
        ("NVIDIA GeForce RTX 4070 SUPER", 12),
        ("AMD EPYC", 0),
    ],
)
def test_a_device_with_less_than_its_board_or_of_no_known_kind_has_no_peaks(name: str, memory: int) -> None:
    assert table_peaks(DeviceKey(name, memory=memory * GIB)) is None


def test_cards_without_bfloat16_have_no_peak_for_it() -> None:
    found = table_peaks(DeviceKey("Tesla T4", memory=15 * GIB))
    assert found is not None
    assert "bfloat16" not in found.operations
    assert Roofline.of([Part(Work(1, 1), "bfloat16")], 1.0, found).share is None


def test_measured_peaks_take_precedence_over_the_data_sheet(kept: Path) -> None:
    sheet = peaks_of(H100)
    assert sheet is not None
    assert sheet.source == "datasheet"
    measured = Measured({"bfloat16": 7e14}, 3e12, "2026-01-01T00:00:00+00:00", "2.11.0", clock=1980)
    kept.write_text(document({str(H100): measured}), "utf-8")
    peaks_of.cache_clear()
    assert peaks_of(H100) == Peaks({"bfloat16": 7e14}, 3e12, "measured")
    assert read_measured(kept) == {str(H100): measured}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"devices": {"x": {"operations": {"float32": 0}, "bandwidth": 1, "when": "", "torch": ""}}}'],
)
def test_a_spoiled_file_is_an_error_that_names_it(kept: Path, text: str) -> None:
    kept.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=r"devices\.json is not a file of device peaks"):
        read_measured(kept)


def test_the_file_is_in_the_users_data_folder_or_at_the_path_of_the_variable() -> None:
    assert peaks_file({PEAKS_VARIABLE: "/a/b.json"}) == Path("/a/b.json")
    assert peaks_file({"XDG_DATA_HOME": "/data"}) == Path("/data/acestep-otel/devices.json")
    assert peaks_file({}) == Path.home() / ".local/share/acestep-otel/devices.json"


def test_every_row_of_the_table_has_a_ridge_above_one() -> None:
    """A rate or a bandwidth in the wrong unit would be off by a thousand."""
    for board in peaks_module._BOARDS:
        found = board.peaks()
        assert 10 < found.operations["float16"] / found.bandwidth < 500, board.name


def test_a_key_identifies_the_device() -> None:
    assert str(H100) == "NVIDIA H100 80GB HBM3, 79 GiB"
    assert str(DeviceKey("AMD EPYC", threads=1)) == "AMD EPYC, 1 thread"
    assert str(DeviceKey("AMD EPYC", threads=8)) == "AMD EPYC, 8 threads"


def test_the_share_is_the_time_at_the_nearer_ceiling_over_the_time_it_took() -> None:
    compute, memory = Part(Work(400, 50), "bfloat16"), Part(Work(10, 100), "bfloat16")
    of_compute = Roofline.of([compute], 8.0, PEAKS)
    assert (of_compute.ideal, of_compute.ceiling, of_compute.share) == (4.0, "compute", 0.5)
    assert (of_compute.operation_rate, of_compute.byte_rate) == (50.0, 6.25)
    of_memory = Roofline.of([memory], 8.0, PEAKS)
    assert (of_memory.ideal, of_memory.ceiling, of_memory.share) == (2.0, "memory", 0.25)
    both = Roofline.of([compute, memory], 8.0, PEAKS)
    # Passes follow one another: the sum of both, and not the larger of the two sums.
    assert (both.ideal, both.ceiling) == (6.0, "compute")


def test_a_precision_has_a_separate_ceiling() -> None:
    assert Roofline.of([Part(Work(100, 1), "float32")], 100.0, PEAKS).share == 0.1
    assert Roofline.of([Part(Work(100, 1), "bfloat16")], 100.0, PEAKS).share == 0.01


def test_without_peaks_there_are_rates_and_no_share() -> None:
    found = Roofline.of([Part(Work(100, 10), "float32")], 2.0, None)
    assert (found.share, found.ceiling, found.bound(waits_for_host=True)) == (None, None, None)
    assert found.operation_rate == 50


def test_a_stage_is_launch_bound_only_far_below_the_roofline() -> None:
    near, far = (Roofline.of([Part(Work(100, 1), "bfloat16")], seconds, PEAKS) for seconds in (1.5, 10.0))
    assert near.bound(waits_for_host=True) == "compute"
    assert far.bound(waits_for_host=True) == "launch"
    assert far.bound(waits_for_host=False) == "compute"


amounts = st.floats(1e-3, 1e6)


@given(st.lists(st.tuples(amounts, amounts), min_size=1, max_size=8))
def test_the_ideal_time_is_at_least_that_of_either_ceiling(parts: list[tuple[float, float]]) -> None:
    found = Roofline.of([Part(Work(*part), "bfloat16") for part in parts], 1.0, PEAKS)
    assert found.ideal is not None
    least = max(found.work.operations / 100.0, found.work.bytes / 50.0)
    assert least * (1 - 1e-9) <= found.ideal <= (found.work.operations / 100.0 + found.work.bytes / 50.0) * (1 + 1e-9)


def test_the_file_is_json_that_may_be_edited(kept: Path) -> None:
    text = document({"card": Measured({"float32": 1e12}, 1e11, "2026-01-01", "2.11.0")})
    assert json.loads(text)["devices"]["card"]["operations"] == {"float32": 1e12}
