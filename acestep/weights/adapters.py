"""Adapters of the diffusion transformer as they are stored: LoRA, DoRA and LoKr.

An adapter changes the weights of some linear layers. Three forms are read: a folder or a file of PEFT, which
ACE-Step's own training writes for LoRA and DoRA, and a file of diffusers (``peft_adapters``); and a file of LyCORIS,
which that training writes for LoKr (``lycoris_adapters``). Changes are computed in float32, on the weights that the
model was loaded with.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import nn

from acestep.errors import CheckpointInvalid, CheckpointNotFound, InvalidRequest
from acestep.weights.lycoris_adapters import is_lycoris, lycoris_change
from acestep.weights.peft_adapters import PEFT_FILE, peft_change
from acestep.weights.tensor_files import TensorFiles

_FILES: Final = (PEFT_FILE, "pytorch_lora_weights.safetensors", "lokr_weights.safetensors")
"""File names of adapters that PEFT, diffusers and ACE-Step's training of LoKr write."""
LONGEST_NAME: Final = 64


@dataclass(frozen=True, slots=True)
class Adapter:
    """Path, scale and name of an adapter.

    Attributes:
        path: its safetensors file, or the folder that contains it.
        scale: factor on what it adds, unless a request sets another; 1 is what it was trained for, 0 is off.
        name: its name in requests and spans; by default the name of the folder, or of a file with a name of its own.
    """

    path: Path
    scale: float = 1.0
    name: str | None = None

    @property
    def called(self) -> str:
        """The name: the given one, or the default."""
        if self.name is not None:
            return self.name
        path = self.path.absolute()
        return path.parent.name if path.name in _FILES else path.stem if path.suffix == ".safetensors" else path.name


class WeightChange(Protocol):
    """The change that an adapter makes to the weights of linear layers."""

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
        scale: its scale unless a request sets another.
        change: its change of the weights.
    """

    name: str
    scale: float
    change: WeightChange


def read_adapter(adapter: Adapter, transformer: Any) -> LoadedAdapter:
    """Read an adapter and check that all of it fits a model.

    Args:
        adapter: its path, scale and name.
        transformer: ``diffusers.AceStepTransformer1DModel`` that it is for, in any form; it is not changed.

    Raises:
        InvalidRequest: the name or the scale cannot be used.
        BackendUnavailable: the library for it is not installed.
        CheckpointNotFound: there is no adapter at the path.
        CheckpointInvalid: it is corrupt, of a kind that is not supported, not finite, or made for another model.
    """
    if not 1 <= len(adapter.called) <= LONGEST_NAME or not adapter.called.isprintable() or "," in adapter.called:
        raise InvalidRequest(
            f"{adapter.called!r} is not a valid name for an adapter: use 1 to {LONGEST_NAME} printable characters "
            "without a comma"
        )
    require_scale(adapter.called, adapter.scale)
    file = _adapter_file(adapter.path)
    shapes = {name: layer.weight.shape for name, layer in transformer.named_modules() if isinstance(layer, nn.Linear)}
    state = _read(file)
    read_change = lycoris_change if is_lycoris(state) else peft_change
    return LoadedAdapter(adapter.called, float(adapter.scale), read_change(file, state, shapes))


def require_scale(name: str, scale: object) -> None:
    """Reject a scale that is not a finite number.

    Raises:
        InvalidRequest: it is not a finite number.
    """
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise InvalidRequest(f"the scale of adapter {name} is {scale!r}: it must be a finite number")


def combined(layer: str, weight: torch.Tensor, adapters: Iterable[tuple[LoadedAdapter, float]]) -> torch.Tensor:
    """A layer's weight under several adapters: what they add is summed.

    Args:
        layer: its name.
        weight: of the model without adapters, float32.
        adapters: each with its scale; those that do not change the layer are skipped.
    """
    total = weight
    for adapter, scale in adapters:
        if scale and layer in adapter.change.layers:
            total = total + adapter.change.difference(layer, weight, scale)
    return total


def merge_adapters(transformer: Any, adapters: Sequence[LoadedAdapter]) -> None:
    """Add adapters to a transformer's weights permanently, at their own scales."""
    with torch.no_grad():
        for layer in dict.fromkeys(layer for adapter in adapters for layer in adapter.change.layers):
            weight = transformer.get_submodule(layer).weight
            weight.copy_(combined(layer, weight.float(), [(adapter, adapter.scale) for adapter in adapters]))


def _adapter_file(path: Path) -> Path:
    if path.is_file():
        if path.suffix != ".safetensors":
            raise CheckpointInvalid(f"{path} is not a safetensors file, the only supported format of adapters")
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
        raise CheckpointInvalid(f"{file} contains no tensors")
    files.read_into(state)
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointInvalid(f"{file} has NaN or infinity in {name}")
    return state
