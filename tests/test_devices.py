"""Devices: an explicit choice is honoured or refused, never replaced."""

import pytest
import torch

from acestep.devices import default_dtype, resolve_device
from acestep.errors import DeviceUnavailable


def test_cpu_is_always_there():
    assert resolve_device("cpu") == torch.device("cpu")


def test_auto_takes_the_best_that_exists(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto").type == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert str(resolve_device("auto")) == "cuda:1"


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:-1", "cpu:zero", "", "xpu"])
def test_an_unknown_device_is_named_with_the_choices(name):
    with pytest.raises(DeviceUnavailable, match="choose auto, cuda"):
        resolve_device(name)


def test_cuda_asked_for_and_absent_names_the_way_out(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceUnavailable, match="`device` cpu"):
        resolve_device("cuda")


def test_a_cuda_index_beyond_the_last_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert str(resolve_device("cuda:1")) == "cuda:1"
    with pytest.raises(DeviceUnavailable, match="only 2 CUDA devices"):
        resolve_device("cuda:2")


def test_mps_asked_for_and_absent_is_refused(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceUnavailable, match="mps"):
        resolve_device("mps")


def test_weights_are_bfloat16_on_cuda_and_float32_elsewhere():
    assert default_dtype(torch.device("cuda", 0)) is torch.bfloat16
    assert default_dtype(torch.device("cpu")) is torch.float32
