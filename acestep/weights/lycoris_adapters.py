"""Adapters of LyCORIS: LoKr, as written by ACE-Step's training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from acestep.errors import CheckpointInvalid
from acestep.weights.official_format import ATTENTION_NAMES

_LYCORIS: Final = "lycoris_"
_LYCORIS_PARTS: Final = frozenset(
    {"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "alpha", "dora_scale"}
)


def is_lycoris(names: Iterable[str]) -> bool:
    """Whether tensors of these names are LyCORIS's."""
    return any(name.startswith(_LYCORIS) for name in names)


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
class LycorisChange:
    """LoKr, as a LyCORIS network computes it in a forward pass.

    Its function for merging (4.1.3) is not used: it multiplies by the trained scale twice.

    Attributes:
        products: by layer.
    """

    products: Mapping[str, _KroneckerProduct]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that it changes."""
        return tuple(self.products)

    def difference(self, layer: str, weight: torch.Tensor, scale: float) -> torch.Tensor:
        """See ``acestep.weights.adapters.WeightChange``."""
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


def lycoris_change(file: Path, state: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Size]) -> LycorisChange:
    """What a file of LyCORIS changes.

    Args:
        file: its path, for messages.
        state: its tensors, float32.
        shapes: of the weights of the model's linear layers, by name.

    Raises:
        CheckpointInvalid: a tensor has no place in the model, or a layer's tensors are incomplete.
    """
    layers = {_LYCORIS + _flat_name(layer): layer for layer in shapes}
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        stored, _, part = name.rpartition(".")
        if stored not in layers or part not in _LYCORIS_PARTS:
            raise CheckpointInvalid(f"{file} has the tensor {name}, which is not a LoKr of a linear layer of the model")
        found.setdefault(layers[stored], {})[part] = tensor
    return LycorisChange({layer: _product(file, layer, parts, shapes[layer]) for layer, parts in found.items()})


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
    # Checked before anything is multiplied: the product of thin matrices can have any size.
    if (rows, columns) != tuple(shape) or (magnitude is not None and magnitude.shape not in ((rows, 1), (1, columns))):
        raise CheckpointInvalid(
            f"{file} has matrices for {layer} whose product is not of shape {shape[0]} x {shape[1]}"
        )
    rank = next((side[1].shape[0] for side in (lefts, rights) if len(side) == 2), None)
    alpha = float(parts["alpha"]) if "alpha" in parts and parts["alpha"].numel() == 1 else 0.0
    # Two unfactored matrices have no rank to scale by, and an alpha of 0 stands for the rank.
    scale = 1.0 if rank is None or alpha == 0 else alpha / rank
    return _KroneckerProduct(scale * _multiplied(lefts), _multiplied(rights), magnitude)


def _factors(file: Path, layer: str, parts: Mapping[str, torch.Tensor], name: str) -> list[torch.Tensor]:
    """One side of a product: a matrix, or the product of two."""
    names = [name] if name in parts else [f"{name}_a", f"{name}_b"]
    found = [parts[part] for part in names if part in parts and parts[part].dim() == 2]
    if len(found) < len(names) or (len(found) == 2 and found[0].shape[1] != found[1].shape[0]):
        raise CheckpointInvalid(f"{file} has no complete {name} of {layer}")
    return found


def _multiplied(factors: Sequence[torch.Tensor]) -> torch.Tensor:
    return factors[0] if len(factors) == 1 else factors[0] @ factors[1]
