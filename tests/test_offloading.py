"""Models that wait on the host: what moves when, what stays the same object, and what memory it leaves (R133, R134)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from acestep.errors import OutOfMemory
from acestep.offloading import (
    LANGUAGE_MODEL,
    TRANSFORMER,
    ModelOffloader,
    _parts,
    _tensors,
    loading_device,
    stored_bytes,
)
from acestep.types import Placement

CPU = torch.device("cpu")
GPU = torch.device("cpu", 0)
"""Stands in for a GPU: tensors moved to it are copies of those on the host."""
OFFLOAD = Placement(offload_to_cpu=True)
_to = torch.Tensor.to


@pytest.fixture(autouse=True)
def _another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def to(tensor: torch.Tensor, *destination: Any, **options: Any) -> torch.Tensor:
        return tensor.clone() if destination == (GPU,) else _to(tensor, *destination, **options)

    monkeypatch.setattr(torch.Tensor, "to", to)


def small_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.Linear(64, 32)).eval()
    model.append(nn.Embedding(4, 32))
    return model.requires_grad_(False)


def addresses(model: nn.Module) -> list[int]:
    return [part.data_ptr() for _, _, tensor in _tensors(model) for part in _parts(tensor)]


class Watched(ModelOffloader):
    """Notes every move."""

    def __init__(self, device: torch.device, placement: Placement) -> None:
        super().__init__(device, placement)
        self.moves: list[tuple[str, torch.device]] = []

    def move(self, name: str, model: nn.Module, destination: torch.device) -> int:
        self.moves.append((name, destination))
        return super().move(name, model, destination)


@pytest.fixture(params=["plain", "quantised"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    model = small_model()
    if request.param == "quantised":
        quantize_(model, Int8WeightOnlyConfig())
    return model


def test_r133_a_model_is_on_the_device_only_while_it_is_used(model):
    host, inputs = addresses(model), torch.ones(2, 32)
    expected = model[:3](inputs)
    with ModelOffloader(GPU, OFFLOAD).on_device(vae=model):
        assert not set(addresses(model)) & set(host)
        assert torch.equal(model[:3](inputs), expected)
    # The very memory that it came from: leaving copies nothing back.
    assert addresses(model) == host
    assert torch.equal(model[:3](inputs), expected)


@pytest.mark.parametrize(
    ("placement", "stays"),
    [(OFFLOAD, True), (Placement(offload_to_cpu=True, offload_dit_to_cpu=True), False), (Placement(), True)],
)
def test_r134_the_dit_stays_unless_it_is_offloaded_too(placement, stays):
    model = small_model()
    host, offloader = addresses(model), Watched(GPU, placement)
    offloader.place(TRANSFORMER, model)
    assert offloader.idle_device(TRANSFORMER) == (GPU if stays else CPU)
    assert (addresses(model) != host) == stays
    with offloader.on_device(transformer=model):
        assert addresses(model) != host
    assert [destination for _, destination in offloader.moves] == ([] if stays else [GPU, CPU])


def test_references_to_a_weight_follow_its_device():
    model = small_model()
    head = model[0].weight
    with ModelOffloader(GPU, OFFLOAD).on_device(**{LANGUAGE_MODEL: model}):
        assert head is model[0].weight


def test_tied_weights_stay_tied():
    model = small_model()
    model[2].weight = nn.Parameter(torch.zeros(64, 32), requires_grad=False)
    model[0].weight = model[2].weight
    with ModelOffloader(GPU, OFFLOAD).on_device(vae=model):
        assert model[0].weight is model[2].weight
    assert model[0].weight is model[2].weight


def test_blocks_within_blocks_move_once():
    model, offloader = small_model(), Watched(GPU, OFFLOAD)
    with offloader.on_device(vae=model), offloader.on_device(vae=model):
        pass
    assert offloader.moves == [("vae", GPU), ("vae", CPU)]


def test_a_failure_also_offloads_models():
    model = small_model()
    host = addresses(model)
    with pytest.raises(ZeroDivisionError), ModelOffloader(GPU, OFFLOAD).on_device(vae=model):
        raise ZeroDivisionError
    assert addresses(model) == host


def test_a_move_that_runs_out_of_memory_leaves_nothing_behind(monkeypatch):
    model, other = small_model(), small_model()
    hosts, offloader = (addresses(model), addresses(other)), ModelOffloader(GPU, OFFLOAD)
    brought = []
    to = torch.Tensor.to

    def full(tensor, *destination, **options):
        if destination == (GPU,):
            brought.append(tensor)
            if len(brought) == 12:
                raise torch.OutOfMemoryError("no room")
        return to(tensor, *destination, **options)

    monkeypatch.setattr(torch.Tensor, "to", full)
    with pytest.raises(OutOfMemory, match=r"offload\.move"), offloader.on_device(text_encoder=other, vae=model):
        pytest.fail("it never got in")
    # It happened in the middle of the second model.
    assert len(hosts[1]) < 12 < len(hosts[1]) + len(hosts[0])
    assert (addresses(model), addresses(other)) == hosts
    # And it can be tried again.
    with offloader.on_device(text_encoder=other, vae=model):
        assert addresses(model) != hosts[0]


def test_weights_that_moved_in_inference_mode_can_move_again_outside_of_it():
    model = small_model()
    offloader = ModelOffloader(GPU, OFFLOAD)
    with torch.inference_mode(), offloader.on_device(vae=model):
        assert not model[0].weight.is_inference()
    with offloader.on_device(vae=model):
        model[:3](torch.ones(2, 32))


def test_bytes_are_those_that_are_stored():
    model = small_model()
    plain = 4 * (32 * 64 + 64 + 4 * 64 + 64 * 32 + 32 + 4 * 32) + 8
    assert stored_bytes(model) == plain
    quantize_(model, Int8WeightOnlyConfig())
    # A weight is one byte and each of its rows has a scale and a zero point.
    assert plain - 3 * 2 * 32 * 64 <= stored_bytes(model) <= plain - 3 * 2 * 32 * 64 + 96 * 8


def test_weights_are_loaded_to_the_host_when_the_device_should_not_hold_them_all():
    assert loading_device(GPU, Placement()) == GPU
    assert loading_device(GPU, OFFLOAD) == CPU
    assert loading_device(GPU, Placement(quantization="int8_weight_only")) == CPU


def test_a_model_can_be_kept_off_the_device_for_a_while():
    model, offloader = small_model(), Watched(GPU, Placement())
    values = [parameter.clone() for parameter in model.parameters()]
    with offloader.on_host("vae", model):
        assert offloader.moves == [("vae", CPU)]
    assert offloader.moves == [("vae", CPU), ("vae", GPU)]
    assert all(map(torch.equal, model.parameters(), values))


def test_also_one_that_is_in_use_and_waits_on_the_host_otherwise():
    model, offloader = small_model(), Watched(GPU, OFFLOAD)
    host = addresses(model)
    with offloader.on_host("vae", model):
        assert offloader.moves == []
    with offloader.on_device(vae=model):
        with offloader.on_host("vae", model):
            assert addresses(model) == host
        assert addresses(model) != host
    assert addresses(model) == host


def test_memory_is_given_back_only_where_models_leave(monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    cuda = torch.device("cuda", 0)
    ModelOffloader(cuda, Placement()).empty_cache()
    ModelOffloader(CPU, OFFLOAD).empty_cache()
    assert emptied == []
    ModelOffloader(cuda, OFFLOAD).empty_cache()
    assert emptied == [True]
