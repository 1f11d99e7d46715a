"""Adapters on disk: LoRA, DoRA and LoKr, each at its trained strength, and refused when they would be applied in part.

What an adapter adds is held against the formulas of the papers, written out here.
"""

from __future__ import annotations

import json
import math
import pickle
import tempfile
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from acestep.checkpoints import TINY_DIT, ModelSelection, load_renderer_models
from acestep.errors import BackendUnavailable, CheckpointInvalid, CheckpointNotFound, InvalidRequest
from acestep.synthetic.renderer import build_renderer_models
from acestep.types import Placement
from acestep.weights import peft_adapters
from acestep.weights.adapters import Adapter, merge_adapters, read_adapter

CPU = torch.device("cpu")
RANK = 4
LAYER = "layers.1.self_attn"


@cache
def plain_models():
    return build_renderer_models(TINY_DIT, device=CPU, dtype=torch.float32)


def transformer(*chosen: Adapter):
    """The tiny transformer, with adapters merged into it."""
    merged = deepcopy(plain_models().transformer)
    merge_adapters(merged, [read_adapter(adapter, merged) for adapter in chosen])
    return merged


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
    assert "q_proj.alpha, which is not a LoRA of a linear layer" in refusal(folder)
    save_file(state | {name: torch.zeros(RANK, 3)}, file)
    assert "of shape [4, 3], its layer is 32 x 32" in refusal(folder)


def test_an_adapter_of_another_method_is_refused(tmp_path):
    folder = write_adapter(tmp_path / "lora")
    save_file({"layers.0.mlp.gate_proj.hada_w1_a": torch.zeros(2, 2)}, folder / "adapter_model.safetensors")
    assert "hada_w1_a, which is not a LoRA" in refusal(folder)
    assert "is an adapter of kind LOHA: LORA, LOKR are supported" in refusal(
        write_adapter(tmp_path / "loha", peft_type="LOHA")
    )


def test_the_selection_of_models_names_adapters_and_only_quantised_weights_hold_them(tmp_path):
    folder = write_adapter(tmp_path / "lora")
    selection = ModelSelection(dit=TINY_DIT, adapters=(Adapter(folder, 0.5),))
    loaded = load_renderer_models(selection, CPU, torch.float32)
    assert [(adapter.name, adapter.scale) for adapter in loaded.adapters] == [("lora", 0.5)]
    assert torch.equal(weight(loaded.transformer), weight(transformer()))
    quantised = replace(selection, placement=Placement(quantization="int8_weight_only"))
    merged = load_renderer_models(quantised, CPU, torch.float32)
    assert [adapter.name for adapter in merged.adapters] == ["lora"]
    change = weight(merged.transformer).dequantize() - weight(transformer())
    assert torch.allclose(change, added(folder, "q_proj"), atol=0.1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("modules_to_save", ["norm_out"]),
        ("lora_bias", True),
        ("bias", "all"),
        ("init_lora_weights", "pissa_niter_4"),
        ("layer_replication", [[0, 1]]),
    ],
)
def test_what_is_more_than_a_change_of_each_weight_is_refused(tmp_path, key, value):
    folder = write_adapter(tmp_path / "lora", **{key: value})
    assert f"sets {key}, which is not supported" in refusal(folder)


def weight(model, projection: str = "to_q") -> torch.Tensor:
    return model.get_submodule(f"{LAYER}.{projection}").weight


def test_layers_may_have_ranks_and_strengths_of_their_own(tmp_path):
    patterns = {"alpha_pattern": {"self_attn.o_proj": 12, "q_proj": 1}, "rank_pattern": {"layers.1.*": RANK}, "r": 99}
    merged = transformer(Adapter(write_adapter(tmp_path / "lora", **patterns)))
    assert_added(merged, added(tmp_path / "lora", "q_proj") / RANK)
    assert_added(merged, 12 / RANK * added(tmp_path / "lora", "o_proj"), "to_out.0")


def test_a_rank_that_the_configuration_denies_is_refused(tmp_path):
    assert "with rank 4, but its configuration has 8" in refusal(write_adapter(tmp_path / "lora", r=8))


def test_a_file_of_diffusers_says_its_strength_itself(tmp_path):
    folder = write_adapter(tmp_path / "lora", prefix="transformer.")
    file = tmp_path / "strings.safetensors"
    state = load_file(folder / "adapter_model.safetensors")
    metadata = {"lora_adapter_metadata": json.dumps({"transformer.r": RANK, "transformer.lora_alpha": RANK * 3})}
    save_file(state, file, metadata=metadata)
    assert_added(transformer(Adapter(file)), 3 * added(folder, "q_proj"))
    assert Adapter(file).called == "strings"
    save_file(state, file, metadata={"lora_adapter_metadata": "no JSON"})
    assert "has metadata that is not JSON" in refusal(file)
    save_file(state, file, metadata={"lora_adapter_metadata": "[]"})
    assert "has metadata that is not a JSON object" in refusal(file)


def write_dora(folder: Path) -> Path:
    write_adapter(folder, use_dora=True)
    file = folder / "adapter_model.safetensors"
    state = load_file(file)
    generator = torch.Generator().manual_seed(5)
    for name in [name for name in state if name.endswith("lora_B.weight")]:
        magnitude = torch.rand(state[name].shape[0], generator=generator) + 0.5
        state[name.replace("lora_B.weight", "lora_magnitude_vector")] = magnitude
    save_file(state, file)
    return folder


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_dora_sets_the_length_of_each_row_beside_its_direction(tmp_path, scale):
    """arXiv 2402.09353; the scale is on the low-rank part, as PEFT has it."""
    folder = write_dora(tmp_path / "dora")
    state = load_file(folder / "adapter_model.safetensors")
    magnitude = next(tensor for name, tensor in state.items() if "q_proj.lora_magnitude" in name)
    plain = weight(transformer())
    moved = plain + scale * 2 * added(folder, "q_proj")
    expected = magnitude[:, None] * moved / moved.norm(dim=1, keepdim=True) - plain
    assert_added(transformer(Adapter(folder, scale)), expected)


def test_a_dora_without_one_of_its_lengths_is_refused(tmp_path):
    folder = write_dora(tmp_path / "dora")
    file = folder / "adapter_model.safetensors"
    state = load_file(file)
    state.pop(next(name for name in state if "lora_magnitude" in name))
    save_file(state, file)
    assert "lora_magnitude_vector" in refusal(folder)


def write_lokr(path: Path, *, full: bool = False, decomposed: str = "", alpha: float = 3.0) -> dict[str, torch.Tensor]:
    """A LoKr of one projection as LyCORIS saves it, and its tensors by their short names."""
    rows, columns = weight(transformer()).shape
    generator = torch.Generator().manual_seed(7)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    parts = {"lokr_w1": drawn(4, 8), "alpha": torch.tensor(alpha)}
    if full:
        parts["lokr_w2"] = drawn(rows // 4, columns // 8)
    else:
        parts |= {"lokr_w2_a": drawn(rows // 4, 2), "lokr_w2_b": drawn(2, columns // 8)}
    if decomposed:
        parts["dora_scale"] = drawn(*((rows, 1) if decomposed == "rows" else (1, columns))).abs() + 0.5
    path.parent.mkdir(exist_ok=True)
    name = "lycoris_" + LAYER.replace(".", "_") + "_q_proj"
    save_file({f"{name}.{part}": tensor for part, tensor in parts.items()}, path)
    return parts


def kronecker(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The Kronecker product by its definition."""
    blocks = left[:, None, :, None] * right[None, :, None, :]
    return blocks.reshape(left.shape[0] * right.shape[0], left.shape[1] * right.shape[1])


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("full", [False, True])
def test_lokr_adds_a_kronecker_product(tmp_path, full, scale):
    """arXiv 2309.14859: two whole matrices have no rank, and so no strength but 1."""
    file = tmp_path / "lokr" / "lokr_weights.safetensors"
    parts = write_lokr(file, full=full)
    right = parts["lokr_w2"] if full else parts["lokr_w2_a"] @ parts["lokr_w2_b"] * (3.0 / 2)
    assert_added(transformer(Adapter(file.parent, scale)), scale * kronecker(parts["lokr_w1"], right))
    assert Adapter(file).called == Adapter(file.parent).called == "lokr"


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("decomposed", ["rows", "columns"])
def test_lokr_with_decomposed_weights(tmp_path, decomposed, scale):
    parts = write_lokr(tmp_path / "own.safetensors", decomposed=decomposed)
    plain = weight(transformer())
    right = parts["lokr_w2_a"] @ parts["lokr_w2_b"] * (3.0 / 2)
    moved = plain + kronecker(parts["lokr_w1"], right)
    length = moved.norm(dim=1 if decomposed == "rows" else 0, keepdim=True)
    expected = moved * (1 + scale * (parts["dora_scale"] / length - 1)) - plain
    assert_added(transformer(Adapter(tmp_path / "own.safetensors", scale)), expected)


def test_a_lokr_that_does_not_fit_is_refused(tmp_path):
    file = tmp_path / "own.safetensors"
    write_lokr(file)
    state = load_file(file)
    left = next(name for name in state if name.endswith("lokr_w1"))
    save_file(state | {left: torch.zeros(3, 8)}, file)
    assert "whose product is not of shape 32 x 32" in refusal(file)
    save_file({name: tensor for name, tensor in state.items() if name != left}, file)
    assert f"has no complete lokr_w1 of {LAYER}.to_q" in refusal(file)
    first = next(name for name in state if name.endswith("lokr_w2_a"))
    save_file({name: tensor for name, tensor in state.items() if name != first}, file)
    assert f"has no complete lokr_w2 of {LAYER}.to_q" in refusal(file)
    huge = {left: torch.zeros(1, 1), first: torch.zeros(10**6, 1), first[:-1] + "b": torch.zeros(1, 10**6)}
    save_file(huge, file)
    assert "whose product is not of shape 32 x 32" in refusal(file)
    save_file({"lycoris_layers_9_q_proj.lokr_w1": torch.zeros(1)}, file)
    assert "lycoris_layers_9_q_proj.lokr_w1, which is not a LoKr of a linear layer" in refusal(file)


def official_model() -> nn.Module:
    """Two projections of the transformer, under the names that they have in official files."""
    model = nn.Module()
    inner = model
    for part in LAYER.split("."):
        inner.add_module(part, nn.Module())
        inner = inner.get_submodule(part)
    for ours, theirs in (("to_q", "q_proj"), ("to_out.0", "o_proj")):
        plain = weight(transformer(), ours)
        layer = nn.Linear(plain.shape[1], plain.shape[0], bias=False)
        layer.weight = nn.Parameter(plain.clone())
        inner.add_module(theirs, layer)
    return model


PEFT_CONFIGS = {
    "lora": {"lora_alpha": 6, "target_modules": ["q_proj", "o_proj"]},
    "dora": {"target_modules": ["q_proj"], "use_rslora": True, "use_dora": True},
    "patterns": {
        "target_modules": ["q_proj", "o_proj"],
        "rank_pattern": {"o_proj": 2},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 5},
    },
}
LOKR_CONFIGS = {
    "lokr": {"r": 2, "alpha": 5, "target_modules": ["q_proj", "o_proj"]},
    "lokr decomposed": {"r": 1, "alpha": 3, "target_modules": ["q_proj"], "decompose_both": True},
    "lokr by factor": {"r": 2, "alpha": 5, "target_modules": ["q_proj"], "decompose_factor": 8},
}


@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize("name", [*PEFT_CONFIGS, *LOKR_CONFIGS])
def test_what_peft_saved_changes_weights_as_peft_does(tmp_path, name, scale):
    """Made, saved and merged by PEFT alone; ``save_pretrained`` writes the file and its configuration."""
    torch.manual_seed(11)
    if name in PEFT_CONFIGS:
        config = peft.LoraConfig(r=3, init_lora_weights=False, **PEFT_CONFIGS[name])
    else:
        config = peft.LoKrConfig(init_weights=False, **LOKR_CONFIGS[name])
    trained = peft.get_peft_model(official_model(), config)
    trained.save_pretrained(tmp_path / "adapter")
    for layer in trained.modules():
        if hasattr(layer, "set_scale"):
            layer.set_scale("default", scale)
    expected = trained.merge_and_unload()
    merged = transformer(Adapter(tmp_path / "adapter", scale))
    for ours, theirs in (("to_q", "q_proj"), ("to_out.0", "o_proj")):
        assert torch.allclose(weight(merged, ours), expected.get_submodule(f"{LAYER}.{theirs}").weight, atol=1e-5)
    assert not torch.allclose(weight(merged), weight(transformer()), atol=1e-2)


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    folder = write_adapter(tmp_path / "lora")
    file = folder / "adapter_model.safetensors"
    state = load_file(file)
    state[next(iter(state))][0, 0] = math.nan
    save_file(state, file)
    assert "has NaN or infinity in base_model.model.layers.1" in refusal(folder)


@pytest.mark.parametrize("name", ["", "a" * 65, "two,names", "a\nline"])
def test_a_name_is_one_that_can_be_searched_for(tmp_path, name):
    with pytest.raises(InvalidRequest, match="is not a valid name for an adapter"):
        transformer(Adapter(write_adapter(tmp_path / "lora"), name=name))


@pytest.mark.parametrize("scale", [math.nan, math.inf, "1"])
def test_a_scale_is_a_finite_number(tmp_path, scale):
    with pytest.raises(InvalidRequest, match="the scale of adapter lora is"):
        transformer(Adapter(write_adapter(tmp_path / "lora"), scale))


@pytest.mark.parametrize(
    "config",
    [
        {"alpha_pattern": {"(": 1}},
        {"rank_pattern": {"q_proj": 0}},
        {"peft_type": "LOKR", "alpha": 1, "decompose_factor": 0},
        {"peft_type": "LOKR", "alpha": 1, "decompose_factor": "wide"},
        {"rank_pattern": ["q_proj"]},
        {"alpha_pattern": {"q_proj": "strong"}},
    ],
)
def test_a_configuration_that_means_nothing_is_one_line(tmp_path, config):
    folder = write_adapter(tmp_path / "lora", **config)
    if config.get("peft_type") == "LOKR":
        name = f"base_model.model.{LAYER}.q_proj.lokr_"
        save_file({name + "w1": torch.ones(4, 4), name + "w2": torch.ones(8, 8)}, folder / "adapter_model.safetensors")
    assert str(folder) in refusal(folder)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 70) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("qkvo_proj.*(", max_size=8), inner, max_size=3),
    max_leaves=4,
)
KEYS = (
    "peft_type", "r", "lora_alpha", "alpha", "rank_pattern", "alpha_pattern", "use_dora", "use_rslora", "bias",
    "target_modules", "init_lora_weights", "decompose_both", "decompose_factor", "modules_to_save", "anything",
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5), st.sampled_from(["LORA", "LOKR"]))
@settings(max_examples=200, deadline=None)
def test_any_configuration_is_read_or_refused_in_one_line(config, method):
    with tempfile.TemporaryDirectory() as folder:
        lora = write_adapter(Path(folder) / "lora")
        if method == "LOKR":
            name = f"base_model.model.{LAYER}.q_proj.lokr_"
            stored = {name + "w1": torch.ones(4, 4), name + "w2": torch.ones(8, 8)}
            save_file(stored, lora / "adapter_model.safetensors")
        sound = {"peft_type": method, "r": RANK, "lora_alpha": 8, "alpha": 8}
        (lora / "adapter_config.json").write_text(json.dumps({**sound, **config}))
        refused = ""
        try:
            change = read_adapter(Adapter(lora), plain_models().transformer).change
        except CheckpointInvalid as error:
            refused = str(error)
        if refused:
            assert "\n" not in refused
            return
        for layer in change.layers:
            plain = plain_models().transformer.get_submodule(layer).weight.detach()
            assert change.difference(layer, plain, 1.0).shape == plain.shape


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
    monkeypatch.setattr(peft_adapters, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'acestep-otel\[lora\]'"):
        transformer(Adapter(write_adapter(tmp_path / "lora")))
