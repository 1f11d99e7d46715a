"""LoRA adapters: merged at the strength they were trained for, and refused when they would be applied in part."""

from __future__ import annotations

import json
import math
import pickle
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from acestep.checkpoints import TINY_DIT, ModelSelection, load_renderer_models
from acestep.errors import BackendUnavailable, CheckpointInvalid, CheckpointNotFound
from acestep.synthetic.renderer import build_renderer_models
from acestep.weights import adapters
from acestep.weights.adapters import Adapter, merge_adapters

CPU = torch.device("cpu")
RANK = 4
LAYER = "layers.1.self_attn"


@cache
def plain_models():
    return build_renderer_models(TINY_DIT, device=CPU, dtype=torch.float32)


def transformer(*chosen: Adapter):
    """The tiny transformer, with adapters merged into it."""
    models = deepcopy(plain_models().transformer)
    if chosen:
        merge_adapters(models, chosen)
    return models


def write_adapter(folder: Path, *, seed: int = 0, prefix: str = "base_model.model.", **config: object) -> Path:
    """An adapter of two projections as PEFT saves it for ACE-Step's own training."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    layer = transformer().get_submodule(LAYER)
    state = {}
    for theirs, ours in (("q_proj", "to_q"), ("o_proj", "to_out.0")):
        width_out, width_in = layer.get_submodule(ours).weight.shape
        name = f"{prefix}{LAYER}.{theirs}"
        state[f"{name}.lora_A.weight"] = torch.randn(RANK, width_in, generator=generator)
        state[f"{name}.lora_B.weight"] = torch.randn(width_out, RANK, generator=generator)
    save_file(state, folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": ["q_proj", "o_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder


def added(folder: Path, projection: str) -> torch.Tensor:
    state = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in state if f"{projection}.lora_A" in name)
    return state[name.replace("lora_A", "lora_B")] @ state[name]


def assert_added(merged, difference: torch.Tensor, projection: str = "to_q") -> None:
    name = f"{LAYER}.{projection}.weight"
    change = merged.state_dict()[name] - transformer().state_dict()[name]
    assert torch.allclose(change, difference, atol=1e-5)
    assert difference.abs().max() > 0.1


@pytest.mark.parametrize(("scale", "factor"), [(1.0, 2.0), (0.5, 1.0), (-1.0, -2.0)])
def test_an_adapter_is_merged_at_alpha_over_rank_times_its_scale(tmp_path, scale, factor):
    folder = write_adapter(tmp_path / "lora")
    merged = transformer(Adapter(folder, scale))
    assert_added(merged, factor * added(folder, "q_proj"))
    assert_added(merged, factor * added(folder, "o_proj"), "to_out.0")


def test_nothing_else_changes_and_the_layers_are_plain_again(tmp_path):
    merged, plain = transformer(Adapter(write_adapter(tmp_path / "lora"))), transformer()
    ours, theirs = merged.state_dict(), plain.state_dict()
    assert ours.keys() == theirs.keys()
    changed = {name for name in theirs if not torch.equal(ours[name], theirs[name])}
    assert changed == {f"{LAYER}.to_q.weight", f"{LAYER}.to_out.0.weight"}
    assert {type(module) for module in merged.modules()} == {type(module) for module in plain.modules()}
    assert not any(parameter.requires_grad for parameter in merged.parameters())


def test_several_adapters_add_up(tmp_path):
    first, second = write_adapter(tmp_path / "first"), write_adapter(tmp_path / "second", seed=1)
    merged = transformer(Adapter(first), Adapter(second, 0.25))
    assert_added(merged, 2 * added(first, "q_proj") + 0.5 * added(second, "q_proj"))


def test_rank_stabilised_adapters_have_their_own_scale(tmp_path):
    folder = write_adapter(tmp_path / "lora", use_rslora=True)
    assert_added(transformer(Adapter(folder)), 2 * RANK / math.sqrt(RANK) * added(folder, "q_proj"))


def test_a_file_is_an_adapter_too_with_its_configuration_or_without(tmp_path):
    folder = write_adapter(tmp_path / "lora")
    assert_added(transformer(Adapter(folder / "adapter_model.safetensors")), 2 * added(folder, "q_proj"))
    (folder / "adapter_config.json").unlink()
    assert_added(transformer(Adapter(folder)), added(folder, "q_proj"))


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointInvalid) as caught:
        transformer(Adapter(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_tensor_that_has_no_place_in_the_model_is_named(tmp_path):
    folder = write_adapter(tmp_path / "lora")
    file = folder / "adapter_model.safetensors"
    state = load_file(file)
    name = next(iter(state))
    save_file({n.replace("layers.1.", "layers.9."): t for n, t in state.items()}, file)
    assert "layers.9" in refusal(folder)
    save_file(state | {"base_model.model.layers.1.self_attn.q_proj.alpha": torch.ones(1)}, file)
    assert "to_q.alpha, which is no LoRA of a linear layer" in refusal(folder)
    save_file(state | {name: torch.zeros(RANK, 3)}, file)
    assert "of shape [4, 3], its layer is 32 x 32" in refusal(folder)


def test_an_adapter_of_another_method_is_refused(tmp_path):
    folder = write_adapter(tmp_path / "lora")
    save_file({"layers.0.mlp.gate_proj.lokr_w1": torch.zeros(2, 2)}, folder / "adapter_model.safetensors")
    assert "lokr_w1, which is no LoRA" in refusal(folder)


def test_the_selection_of_models_names_adapters_and_they_are_merged_as_the_renderer_loads(tmp_path):
    folder = write_adapter(tmp_path / "lora")
    selection = ModelSelection(dit=TINY_DIT, adapters=(Adapter(folder),))
    assert_added(load_renderer_models(selection, CPU, torch.float32).transformer, 2 * added(folder, "q_proj"))


@pytest.mark.parametrize("key", ["use_dora", "rank_pattern", "alpha_pattern", "modules_to_save"])
def test_what_the_merge_cannot_do_is_refused(tmp_path, key):
    folder = write_adapter(tmp_path / "lora", **{key: ["something"]})
    assert f"sets {key}, which is not supported" in refusal(folder)


@pytest.mark.parametrize("config", [{"r": 0}, {"r": "four"}, {"lora_alpha": None}])
def test_a_configuration_without_a_scale_is_refused(tmp_path, config):
    assert "has no usable r and lora_alpha" in refusal(write_adapter(tmp_path / "lora", **config))


def test_a_corrupt_adapter_is_named(tmp_path):
    folder = write_adapter(tmp_path / "lora")
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    assert "adapter_model.safetensors is corrupt or incomplete" in refusal(folder)


def test_an_adapter_that_is_not_there_or_a_pickle_is_not_found(tmp_path):
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_model.bin").write_bytes(pickle.dumps({}))
    for path in (tmp_path / "lora", tmp_path / "nowhere"):
        with pytest.raises(CheckpointNotFound, match="no LoRA adapter at"):
            transformer(Adapter(path))


def test_without_the_library_the_way_out_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'acestep-otel\[lora\]'"):
        transformer(Adapter(tmp_path))
