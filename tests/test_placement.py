"""A placement as it comes into effect on a device, and what is refused before anything is loaded (R143)."""

from __future__ import annotations

import shutil

import pytest
import torch

from acestep.checkpoints import TINY_DIT, ModelSelection, load_models
from acestep.devices import effective_placement
from acestep.errors import PlacementUnavailable
from acestep.types import Placement
from tests.programs import program

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda", 0), torch.device("mps")
EVERYTHING = Placement(offload_to_cpu=True, offload_dit_to_cpu=True, automatic_offload=True)


@pytest.fixture
def capability(monkeypatch: pytest.MonkeyPatch):
    def set_to(*found: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found)

    return set_to


@pytest.mark.parametrize("device", [CPU, MPS])
def test_offload_is_for_devices_with_memory_of_their_own(device):
    assert effective_placement(EVERYTHING, device) == Placement()


def test_offload_comes_into_effect_on_cuda():
    assert effective_placement(EVERYTHING, CUDA) == EVERYTHING


def test_the_dit_waits_on_the_host_only_where_the_others_do():
    assert effective_placement(Placement(offload_dit_to_cpu=True), CUDA) == Placement()


@pytest.mark.parametrize("form", ["int8_weight_only", "fp8_weight_only", "w8a8_dynamic"])
def test_r143_quantised_weights_are_compiled_without_further_ado(form, capability):
    capability(9, 0)
    program("c++")
    assert effective_placement(Placement(quantization=form), CUDA).compile
    assert effective_placement(Placement(quantization=form), CPU).compile


@pytest.mark.parametrize(
    ("form", "found", "words"),
    [
        ("fp8_weight_only", (8, 6), "8.9, and cuda:0 has 8.6: choose int8_weight_only or w8a8_dynamic, or none"),
        ("w8a8_dynamic", (7, 5), "8.0, and cuda:0 has 7.5: choose int8_weight_only, or none"),
        ("int8_weight_only", (6, 1), "7.0, and cuda:0 has 6.1: leave out `quantization`"),
    ],
)
def test_a_form_that_the_card_has_no_instructions_for_is_refused(form, found, words, capability):
    capability(*found)
    with pytest.raises(PlacementUnavailable, match=f"{form} needs a GPU of compute capability {words}"):
        effective_placement(Placement(quantization=form), CUDA)


@pytest.mark.parametrize(
    ("form", "found"), [("fp8_weight_only", (8, 9)), ("w8a8_dynamic", (8, 0)), ("int8_weight_only", (7, 0))]
)
def test_the_oldest_card_of_each_form_is_taken(form, found, capability):
    capability(*found)
    assert effective_placement(Placement(quantization=form), CUDA).quantization == form


@pytest.mark.parametrize(
    "placement", [Placement(quantization="int8_weight_only"), Placement(compile=True)], ids=["quantised", "compiled"]
)
def test_mps_is_refused_by_name(placement):
    with pytest.raises(PlacementUnavailable, match="mps"):
        effective_placement(placement, MPS)


def test_a_card_that_nothing_compiles_for_is_refused(capability):
    capability(6, 1)
    with pytest.raises(PlacementUnavailable, match="leave out `compile`"):
        effective_placement(Placement(compile=True), CUDA)


def test_a_missing_compiler_is_reported_before_anything_is_loaded(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr("acestep.checkpoints.build_renderer_models", lambda *_, **__: pytest.fail("it was loaded"))
    selection = ModelSelection(dit=TINY_DIT, lm=None, device="cpu", placement=Placement(compile=True))
    with pytest.raises(PlacementUnavailable, match=r"install g\+\+"):
        load_models(selection)
