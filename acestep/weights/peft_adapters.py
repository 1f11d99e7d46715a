"""Adapters of PEFT and of diffusers: LoRA, rank-stabilised LoRA, DoRA and LoKr, computed by PEFT itself."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from acestep.errors import BackendUnavailable, CheckpointInvalid
from acestep.weights.layout import read_json
from acestep.weights.official_format import ATTENTION_NAMES
from acestep.weights.tensor_files import stored_metadata

PEFT_FILE: Final = "adapter_model.safetensors"
_CONFIG: Final = "adapter_config.json"
_PREFIXES: Final = ("base_model.model.", "transformer.", "diffusion_model.", "decoder.")
"""Prefixes that the libraries add to the name of a layer."""
_PARTS: Final[Mapping[str, frozenset[str]]] = {
    "LORA": frozenset({"lora_A", "lora_B", "lora_magnitude_vector"}),
    "LOKR": frozenset({"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"}),
}
"""Tensors of a linear layer, by the method's name in PEFT."""
_SETTINGS: Final[Mapping[str, frozenset[str]]] = {
    "LORA": frozenset({"r", "lora_alpha", "use_rslora", "use_dora"}),
    "LOKR": frozenset({"r", "alpha", "decompose_both", "decompose_factor"}),
}
"""Settings of PEFT's configuration that a change depends on, beside the patterns of rank and alpha."""
_CHANGES_MORE: Final = (
    "modules_to_save", "lora_bias", "layer_replication", "trainable_token_indices", "alora_invocation_tokens",
    "use_qalora", "use_bdlora", "arrow_config", "velora_config",
)  # fmt: skip
"""Settings under which an adapter is more than a change of each layer's weight."""
_REPLACES_WEIGHTS: Final = ("pissa", "corda", "olora", "loftq")
"""Initialisations that change the model's own weights as well, in a way that the file does not hold."""
_NAME: Final = "adapter"
"""The adapter's name within PEFT; each adapter has its own layers there."""


@dataclass(frozen=True, slots=True)
class PeftChange:
    """A change that PEFT computes: its layers are in a separate model and wrap layers without weights.

    Attributes:
        layers: that it changes.
        model: PEFT's layers under the names of the transformer's.
    """

    layers: tuple[str, ...]
    model: nn.Module

    def difference(self, layer: str, weight: torch.Tensor, scale: float) -> torch.Tensor:
        """See ``acestep.weights.adapters.WeightChange``."""
        module: Any = self.model.get_submodule(layer)
        base = module.get_base_layer()
        with torch.no_grad():
            base.weight = nn.Parameter(weight.clone(), requires_grad=False)
            module.to(weight.device)
            try:
                module.set_scale(_NAME, scale)
                # PEFT's check for NaN would wait for the device at every layer; the renderer checks the result.
                module.merge(safe_merge=False, adapter_names=[_NAME])
                change: torch.Tensor = base.weight.data - weight
                return change
            finally:
                module.merged_adapters.clear()
                base.weight = _no_weight(*weight.shape)
                module.to("cpu")


def peft_change(file: Path, state: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Size]) -> PeftChange:
    """What a file of PEFT or diffusers changes.

    Args:
        file: its path; the configuration is beside it or in its header.
        state: its tensors, float32.
        shapes: of the weights of the model's linear layers, by name.

    Raises:
        BackendUnavailable: PEFT is not installed.
        CheckpointInvalid: another method, a tensor without a place in the model, or a configuration that does not fit.
    """
    if find_spec("peft") is None:
        raise BackendUnavailable("LoRA adapters need peft: pip install 'acestep-otel[lora]'")
    import peft

    method, config = _configuration(file)
    tensors = _by_layer(file, state, shapes, method)
    layers = tuple(tensors)
    model = _skeleton({layer: shapes[layer] for layer in layers})
    try:
        peft.inject_adapter_in_model(_peft_config(file, method, config, tensors), model, _NAME, low_cpu_mem_usage=True)
        named = {
            f"{layer}.{part}{'.weight' if part in ('lora_A', 'lora_B') else ''}": tensor
            for layer, parts in tensors.items()
            for part, (_, tensor) in parts.items()
        }
        peft.set_peft_model_state_dict(model, named, adapter_name=_NAME, low_cpu_mem_usage=True)
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError, ArithmeticError, re.error) as error:
        raise CheckpointInvalid(f"{file} cannot be used: {' '.join(str(error).split())}") from error
    absent = [name for name, tensor in model.named_parameters() if tensor.is_meta and "base_layer" not in name]
    if absent:
        raise CheckpointInvalid(f"{file} lacks {absent[0].replace(f'.{_NAME}', '')}")
    return PeftChange(layers, model.requires_grad_(False).eval())


Tensors = dict[str, dict[str, tuple[str, torch.Tensor]]]
"""By layer and part: the layer's name in the file, and the tensor."""


def _by_layer(file: Path, state: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Size], method: str) -> Tensors:
    """A tensor without a place is an error: songs would otherwise be generated with half an adapter."""
    found: Tensors = {}
    for name, tensor in state.items():
        stored = name.removesuffix(".weight")
        for prefix in _PREFIXES:
            stored = stored.removeprefix(prefix)
        stored, _, part = stored.rpartition(".")
        layer = _layer_name(stored)
        if layer not in shapes or part not in _PARTS[method]:
            raise CheckpointInvalid(f"{file} has the tensor {name}, which is not a LoRA of a linear layer of the model")
        expected = _expected_shape(part, tensor, shapes[layer])
        if expected is not None and tuple(tensor.shape) != expected:
            rows, columns = shapes[layer]
            raise CheckpointInvalid(f"{file} has {name} of shape {list(tensor.shape)}, its layer is {rows} x {columns}")
        found.setdefault(layer, {})[part] = (stored, tensor)
    return found


def _expected_shape(part: str, tensor: torch.Tensor, layer: torch.Size) -> tuple[int, ...] | None:
    """Shape of a part of a LoRA for a layer; those of LoKr are checked as a whole."""
    rows, columns = layer
    if part == "lora_A":
        return (tensor.shape[0], columns) if tensor.dim() == 2 else (0, columns)
    if part == "lora_B":
        return (rows, tensor.shape[1]) if tensor.dim() == 2 else (rows, 0)
    return (rows,) if part == "lora_magnitude_vector" else None


def _layer_name(stored: str) -> str:
    """The name in diffusers of a layer, which has another name in official files."""
    parent, _, leaf = stored.rpartition(".")
    return f"{parent}.{_OURS[leaf]}" if leaf in _OURS and parent.endswith("attn") else stored


_OURS: Final = {theirs: ours for ours, theirs in ATTENTION_NAMES.items()}


def _configuration(file: Path) -> tuple[str, dict[str, Any]]:
    """Method and settings: PEFT's configuration beside its file, or what diffusers writes into its own.

    Raises:
        CheckpointInvalid: it requires something that is not supported.
    """
    path = file.parent / _CONFIG
    config: dict[str, Any] = {}
    if file.name == PEFT_FILE and path.exists():
        config = read_json(path)
    elif (text := stored_metadata(file).get("lora_adapter_metadata")) is not None:
        path = file
        try:
            parsed = json.loads(text)
        except ValueError as error:
            raise CheckpointInvalid(f"{file} has metadata that is not JSON") from error
        if not isinstance(parsed, dict):
            raise CheckpointInvalid(f"{file} has metadata that is not a JSON object")
        config = {str(key).removeprefix("transformer."): value for key, value in parsed.items()}
    method = str(config.get("peft_type", "LORA"))
    if method not in _PARTS:
        raise CheckpointInvalid(f"{path} is an adapter of kind {method}: {', '.join(_PARTS)} are supported")
    refused = [key for key in _CHANGES_MORE if config.get(key)]
    if config.get("bias", "none") != "none":
        refused.append("bias")
    if str(config.get("init_lora_weights", "")).startswith(_REPLACES_WEIGHTS):
        refused.append("init_lora_weights")
    if refused:
        raise CheckpointInvalid(f"{path} sets {refused[0]}, which is not supported")
    alpha = "lora_alpha" if method == "LORA" else "alpha"
    usable = isinstance(config.get("r", 1), int) and config.get("r", 1) > 0
    if config and not (usable and isinstance(config.get(alpha), int | float)):
        raise CheckpointInvalid(f"{path} has no usable r and {alpha}")
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(key) or {}
        if not isinstance(pattern, dict) or not all(isinstance(value, int | float) for value in pattern.values()):
            raise CheckpointInvalid(f"{path} has a {key} that is not an object of numbers")
    return method, config


def _peft_config(file: Path, method: str, config: Mapping[str, Any], tensors: Tensors) -> Any:
    """PEFT's own configuration, with rank and alpha of every layer: its patterns are about the file's names."""
    import peft

    settings = {key: value for key, value in config.items() if key in _SETTINGS[method]}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for layer, parts in tensors.items():
        stored = next(iter(parts.values()))[0]
        measured = parts["lora_A"][1].shape[0] if "lora_A" in parts else None
        rank = _of_pattern(config.get("rank_pattern"), stored, config.get("r", measured))
        if measured is not None and rank != measured:
            raise CheckpointInvalid(f"{file} has {layer} with rank {measured}, but its configuration has {rank}")
        ranks[layer] = rank
        # Without a configuration, an adapter is applied at the strength of its matrices.
        own = config.get("lora_alpha", config.get("alpha", rank))
        alphas[layer] = _of_pattern(config.get("alpha_pattern"), stored, own)
    shared = {"target_modules": list(tensors), "rank_pattern": ranks, "alpha_pattern": alphas}
    if method == "LOKR":
        return peft.LoKrConfig(**{"r": 1, **settings}, **shared)
    if any("lora_magnitude_vector" in parts for parts in tensors.values()):
        settings["use_dora"] = True
    return peft.LoraConfig(**{"r": 1, **settings}, **shared)


def _of_pattern(pattern: Mapping[str, Any] | None, layer: str, otherwise: Any) -> Any:
    """A layer's value by PEFT's rule: the first key that the end of its name matches, as a regular expression."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", layer):
            return value
    return otherwise


def _skeleton(shapes: Mapping[str, torch.Size]) -> nn.Module:
    """Linear layers without weights, under their names."""
    root = nn.Module()
    for name, (rows, columns) in shapes.items():
        *path, leaf = name.split(".")
        parent = root
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        layer = nn.Linear(columns, rows, bias=False, device="meta")
        layer.weight = _no_weight(rows, columns)
        parent.add_module(leaf, layer)
    return root


def _no_weight(rows: int, columns: int) -> nn.Parameter:
    """A weight that takes no memory; on the meta device PEFT's own tensors would follow it there."""
    return nn.Parameter(torch.zeros(()).expand(rows, columns), requires_grad=False)
