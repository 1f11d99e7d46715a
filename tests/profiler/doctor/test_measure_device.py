"""``doctor --measure-device``: measured for real on the processor of the test machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from acestep_otel.profiler.cli import main
from acestep_otel.profiler.doctor import measure_device as module
from acestep_otel.profiler.doctor.measure_device import measure_device
from acestep_otel.roofline.devices import device_key
from acestep_otel.roofline.peaks import PEAKS_VARIABLE, peaks_of


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "folder" / "devices.json"
    monkeypatch.setenv(PEAKS_VARIABLE, str(path))
    # As large as it must be to be real, as small as a test allows.
    monkeypatch.setitem(module._WIDTHS, "cpu", (64, 128))  # type: ignore[index]
    monkeypatch.setitem(module._COPIED_BYTES, "cpu", 2**22)  # type: ignore[index]
    peaks_of.cache_clear()
    return path


def test_a_processor_is_measured_and_kept(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measure_device("cpu", seconds=0.2)
    key = device_key(torch.device("cpu"))
    found = peaks_of(key)
    assert found is not None
    assert found.source == "measured"
    assert 1e8 < found.operations["float32"] < 1e14
    assert 1e8 < found.bandwidth < 1e13
    shown = capsys.readouterr().out
    assert str(key) in shown
    assert "TFLOP/s" in shown
    assert "TB/s" in shown
    assert f"Stored in {kept}" in shown


def test_other_devices_stay_in_the_file_and_the_threads_as_they_were(kept: Path) -> None:
    entry = {"operations": {"float32": 1.0}, "bandwidth": 1.0, "when": "2026", "torch": "2.11", "clock": None}
    kept.parent.mkdir()
    kept.write_text(json.dumps({"version": 1, "devices": {"card": entry}}), "utf-8")
    before = torch.get_num_threads()
    measure_device("cpu", seconds=0.1)
    assert torch.get_num_threads() == before
    devices = json.loads(kept.read_text("utf-8"))["devices"]
    assert devices["card"] == entry
    assert str(device_key(torch.device("cpu"))) in devices


def test_a_spoiled_file_is_not_overwritten(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept.parent.mkdir()
    kept.write_text("what I noted", "utf-8")
    assert main(["doctor", "--measure-device", "--device", "cpu"]) == 2
    assert "correct or remove it" in capsys.readouterr().err
    assert kept.read_text("utf-8") == "what I noted"


def test_a_device_that_is_not_there_is_named(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--measure-device", "--device", "abacus"]) == 2
    assert "abacus" in capsys.readouterr().err
    assert not kept.exists()
