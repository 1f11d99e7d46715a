"""Adapters of the diffusion transformer as they are stored: LoRA, DoRA and LoKr.

An adapter says how the weights of some linear layers change. Three forms are read: a folder or a file of PEFT, which
ACE-Step's own training writes for LoRA and DoRA; a file of diffusers; and a file of LyCORIS, which that training
writes for LoKr. Changes are computed in float32, on the weights that the model was loaded with.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import nn

from acestep.errors import BackendUnavailable, CheckpointInvalid, CheckpointNotFound, InvalidRequest
from acestep.weights.layout import read_json
from acestep.weights.official_format import ATTENTION_NAMES
from acestep.weights.tensor_files import TensorFiles, stored_metadata

_PEFT_FILE: Final = "adapter_model.safetensors"
_FILES: Final = (_PEFT_FILE, "pytorch_lora_weights.safetensors", "lokr_weights.safetensors")
"""What PEFT, diffusers and ACE-Step's training of LoKr call an adapter's file."""
_CONFIG: Final = "adapter_config.json"
_PREFIXES: Final = ("base_model.model.", "transformer.", "diffusion_model.", "decoder.")
"""What the libraries put before the name of a layer."""
_PARTS: Final[Mapping[str, frozenset[str]]] = {
    "LORA": frozenset({"lora_A", "lora_B", "lora_magnitude_vector"}),
    "LOKR": frozenset({"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"}),
}
"""Tensors of a linear layer, by the method's name in PEFT."""
_LYCORIS: Final = "lycoris_"
_LYCORIS_PARTS: Final = _PARTS["LOKR"] | {"alpha", "dora_scale"}
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
"""Within PEFT; each adapter has layers of its own there."""
LONGEST_NAME: Final = 64


@dataclass(frozen=True, slots=True)
class Adapter:
    """Where an adapter is, and what it is called.

    Attributes:
        path: its safetensors file, or the folder that holds it.
        scale: factor on what it adds, where a request does not say otherwise; 1 is what it was trained for, 0 is off.
        name: what requests and spans call it; by default the name of the folder, or of a file with a name of its own.
    """

    path: Path
    scale: float = 1.0
    name: str | None = None

    @property
    def called(self) -> str:
        """The name, given or not."""
        if self.name is not None:
            return self.name
        path = self.path.absolute()
        return path.parent.name if path.name in _FILES else path.stem if path.suffix == ".safetensors" else path.name


class WeightChange(Protocol):
    """What an adapter does to the weights of linear layers."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that it changes."""

    def difference(self, layer: str, weight: torch.Tensor, scale: float) -> torch.Tensor:
        """What is added to a layer's weight.

        Args:
            layer: one of ``layers``.
            weight: of the model without adapters, float32, shape ``[out, in]``.
            scale: factor on the adapter.

        Returns:
            float32, on the device and of the shape of ``weight``.
        """


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """An adapter in host memory.

    Attributes:
        name: its name.
        scale: its scale where a request does not say otherwise.
        change: what it does.
    """

    name: str
    scale: float
    change: WeightChange


def read_adapter(adapter: Adapter, transformer: Any) -> LoadedAdapter:
    """Read an adapter and make sure that all of it fits a model.

    Args:
        adapter: where it is.
        transformer: ``diffusers.AceStepTransformer1DModel`` that it is for, in any form; it is not changed.

    Raises:
        InvalidRequest: the name or the scale cannot be used.
        BackendUnavailable: the library for it is not installed.
        CheckpointNotFound: there is no adapter at the path.
        CheckpointInvalid: it is corrupt, of a kind that is not supported, not finite, or made for another model.
    """
    if not 1 <= len(adapter.called) <= LONGEST_NAME or not adapter.called.isprintable() or "," in adapter.called:
        raise InvalidRequest(
            f"{adapter.called!r} is no name for an adapter: give it 1 to {LONGEST_NAME} printable characters without a "
            "comma"
        )
    require_scale(adapter.called, adapter.scale)
    file = _adapter_file(adapter.path)
    shapes = {name: layer.weight.shape for name, layer in transformer.named_modules() if isinstance(layer, nn.Linear)}
    state = _read(file)
    is_lycoris = any(name.startswith(_LYCORIS) for name in state)
    change = _lycoris_change(file, state, shapes) if is_lycoris else _peft_change(file, state, shapes)
    return LoadedAdapter(adapter.called, float(adapter.scale), change)


def require_scale(name: str, scale: object) -> None:
    """Refuse a scale that nothing can be multiplied by.

    Raises:
        InvalidRequest: it is no finite number.
    """
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise InvalidRequest(f"the scale of adapter {name} is {scale!r}: it must be a finite number")


def combined(layer: str, weight: torch.Tensor, adapters: Iterable[tuple[LoadedAdapter, float]]) -> torch.Tensor:
    """A layer's weight under several adapters: what they add is summed.

    Args:
        layer: its name.
        weight: of the model without adapters, float32.
        adapters: each with its scale; those that do not change the layer are passed over.
    """
    total = weight
    for adapter, scale in adapters:
        if scale and layer in adapter.change.layers:
            total = total + adapter.change.difference(layer, weight, scale)
    return total


def merge_adapters(transformer: Any, adapters: Sequence[LoadedAdapter]) -> None:
    """Add adapters to a transformer's weights for good, at their own scales."""
    with torch.no_grad():
        for layer in dict.fromkeys(layer for adapter in adapters for layer in adapter.change.layers):
            weight = transformer.get_submodule(layer).weight
            weight.copy_(combined(layer, weight.float(), [(adapter, adapter.scale) for adapter in adapters]))


def _adapter_file(path: Path) -> Path:
    if path.is_file():
        if path.suffix != ".safetensors":
            raise CheckpointInvalid(f"{path} is no safetensors file, which is the only form of adapters that is read")
        return path
    for name in _FILES:
        if (path / name).is_file():
            return path / name
    raise CheckpointNotFound(f"no LoRA adapter at {path}: give a safetensors file, or a folder with {_FILES[0]}")


def _read(file: Path) -> dict[str, torch.Tensor]:
    """Every tensor in float32."""
    files = TensorFiles([file])
    state = {name: torch.empty(stored.shape) for name, stored in files.tensors.items()}
    if not state:
        raise CheckpointInvalid(f"{file} holds no tensors")
    files.read_into(state)
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointInvalid(f"{file} has NaN or infinity in {name}")
    return state


# --- PEFT and diffusers -------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _PeftChange:
    """Computed by PEFT itself: its layers stand in a model of their own, around layers without weights.

    Attributes:
        layers: that it changes.
        model: PEFT's layers under the names of the transformer's.
    """

    layers: tuple[str, ...]
    model: nn.Module

    def difference(self, layer: str, weight: torch.Tensor, scale: float) -> torch.Tensor:
        module: Any = self.model.get_submodule(layer)
        base = module.get_base_layer()
        with torch.no_grad():
            base.weight = nn.Parameter(weight, requires_grad=False)
            module.to(weight.device)
            try:
                module.set_scale(_NAME, scale)
                # Safe: into a copy.
                module.merge(safe_merge=True, adapter_names=[_NAME])
                change: torch.Tensor = base.weight.data - weight
                return change
            finally:
                module.merged_adapters.clear()
                base.weight = _no_weight(*weight.shape)
                module.to("cpu")


def _peft_change(file: Path, state: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Size]) -> _PeftChange:
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
    return _PeftChange(layers, model.requires_grad_(False).eval())


Tensors = dict[str, dict[str, tuple[str, torch.Tensor]]]
"""By layer and part: the layer's name in the file, and the tensor."""


def _by_layer(file: Path, state: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Size], method: str) -> Tensors:
    """A tensor without a place is an error: a song would otherwise be made with half an adapter."""
    found: Tensors = {}
    for name, tensor in state.items():
        stored = name.removesuffix(".weight")
        for prefix in _PREFIXES:
            stored = stored.removeprefix(prefix)
        stored, _, part = stored.rpartition(".")
        layer = _layer_name(stored)
        if layer not in shapes or part not in _PARTS[method]:
            raise CheckpointInvalid(f"{file} has the tensor {name}, which is no LoRA of a linear layer of this model")
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
    """The name in diffusers of a layer, which official files call otherwise."""
    parent, _, leaf = stored.rpartition(".")
    return f"{parent}.{_OURS[leaf]}" if leaf in _OURS and parent.endswith("attn") else stored


_OURS: Final = {theirs: ours for ours, theirs in ATTENTION_NAMES.items()}


def _configuration(file: Path) -> tuple[str, dict[str, Any]]:
    """Method and settings: PEFT's configuration beside its file, or what diffusers writes into its own.

    Raises:
        CheckpointInvalid: it asks for what cannot be done.
    """
    path = file.parent / _CONFIG
    config: dict[str, Any] = {}
    if file.name == _PEFT_FILE and path.exists():
        config = read_json(path)
    elif (text := stored_metadata(file).get("lora_adapter_metadata")) is not None:
        path = file
        try:
            parsed = json.loads(text)
        except ValueError as error:
            raise CheckpointInvalid(f"{file} has metadata that is no JSON") from error
        if not isinstance(parsed, dict):
            raise CheckpointInvalid(f"{file} has metadata that is no JSON object")
        config = {str(key).removeprefix("transformer."): value for key, value in parsed.items()}
    method = config.get("peft_type", "LORA")
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
            raise CheckpointInvalid(f"{path} has a {key} that is no object of numbers")
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
            raise CheckpointInvalid(f"{file} has {layer} with rank {measured}, its configuration says {rank}")
        ranks[layer] = rank
        # Without a configuration, an adapter is taken at the strength that its matrices have.
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


# --- LyCORIS ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _KroneckerProduct:
    """A layer's change by LoKr (arXiv 2309.14859): the Kronecker product of two matrices, each perhaps factored.

    Attributes:
        left: shape ``[a, b]``, times the trained scale.
        right: shape ``[out / a, in / b]``.
        magnitude: of DoRA (arXiv 2402.09353), shape ``[out, 1]`` or ``[1, in]``; ``None`` without.
    """

    left: torch.Tensor
    right: torch.Tensor
    magnitude: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class _LycorisChange:
    """LoKr, as a LyCORIS network computes it in a forward pass.

    Its function for merging (4.1.3) is not used: it multiplies by the trained scale twice.

    Attributes:
        products: by layer.
    """

    products: Mapping[str, _KroneckerProduct]

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self.products)

    def difference(self, layer: str, weight: torch.Tensor, scale: float) -> torch.Tensor:
        product = self.products[layer]
        change = torch.kron(product.left.to(weight.device), product.right.to(weight.device))
        if product.magnitude is None:
            return change.mul_(scale)
        moved = weight + change
        over = 1 if product.magnitude.shape[0] == moved.shape[0] else 0
        norm = moved.norm(dim=over, keepdim=True) + torch.finfo(moved.dtype).eps
        magnitude = product.magnitude.to(weight.device)
        # The scale is on the magnitude alone; the direction is always the trained one.
        decomposed: torch.Tensor = moved * (1.0 + scale * (magnitude / norm - 1.0))
        return decomposed - weight


def _lycoris_change(file: Path, state: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Size]) -> _LycorisChange:
    layers = {_LYCORIS + _flat_name(layer): layer for layer in shapes}
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        stored, _, part = name.rpartition(".")
        if stored not in layers or part not in _LYCORIS_PARTS:
            raise CheckpointInvalid(f"{file} has the tensor {name}, which is no LoKr of a linear layer of this model")
        found.setdefault(layers[stored], {})[part] = tensor
    return _LycorisChange({layer: _product(file, layer, parts, shapes[layer]) for layer, parts in found.items()})


def _flat_name(layer: str) -> str:
    """A layer's name in a file of LyCORIS."""
    for ours, theirs in ATTENTION_NAMES.items():
        if layer.endswith(f"attn.{ours}"):
            layer = layer.removesuffix(ours) + theirs
    return layer.replace(".", "_")


def _product(file: Path, layer: str, parts: Mapping[str, torch.Tensor], shape: torch.Size) -> _KroneckerProduct:
    lefts, rights = (_factors(file, layer, parts, name) for name in ("lokr_w1", "lokr_w2"))
    rows, columns = lefts[0].shape[0] * rights[0].shape[0], lefts[-1].shape[1] * rights[-1].shape[1]
    magnitude = parts.get("dora_scale")
    # Checked before anything is multiplied: thin matrices could make one of any size.
    if (rows, columns) != tuple(shape) or (magnitude is not None and magnitude.shape not in ((rows, 1), (1, columns))):
        raise CheckpointInvalid(f"{file} has matrices for {layer} that do not make one of {shape[0]} x {shape[1]}")
    rank = next((side[1].shape[0] for side in (lefts, rights) if len(side) == 2), None)
    alpha = float(parts["alpha"]) if "alpha" in parts and parts["alpha"].numel() == 1 else 0.0
    # Two whole matrices have no rank to scale by, and an alpha of 0 stands for the rank.
    scale = 1.0 if rank is None or alpha == 0 else alpha / rank
    return _KroneckerProduct(scale * _multiplied(lefts), _multiplied(rights), magnitude)


def _factors(file: Path, layer: str, parts: Mapping[str, torch.Tensor], name: str) -> list[torch.Tensor]:
    """One side of a product: a matrix, or two that make it."""
    names = [name] if name in parts else [f"{name}_a", f"{name}_b"]
    found = [parts[part] for part in names if part in parts and parts[part].dim() == 2]
    if len(found) < len(names) or (len(found) == 2 and found[0].shape[1] != found[1].shape[0]):
        raise CheckpointInvalid(f"{file} has no complete {name} of {layer}")
    return found


def _multiplied(factors: Sequence[torch.Tensor]) -> torch.Tensor:
    return factors[0] if len(factors) == 1 else factors[0] @ factors[1]
