"""LoRA adapters of the diffusion transformer, merged into its weights when it is loaded.

Merged, an adapter costs nothing per step, and quantisation and compilation see plain linear layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from acestep.errors import BackendUnavailable, CheckpointInvalid, CheckpointNotFound
from acestep.weights.layout import read_json
from acestep.weights.tensor_files import TensorFiles

_FILES: Final = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""What PEFT (and ACE-Step's own training) and diffusers call an adapter's file."""
_CONFIG: Final = "adapter_config.json"
_ROLE: Final = "transformer."
_NAME: Final = "adapter"
"""Of each in turn: one is merged before the next is loaded."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """One LoRA adapter.

    Attributes:
        path: its safetensors file, or the folder that holds it.
        scale: factor on what it adds; 1 is what it was trained for.
    """

    path: Path
    scale: float = 1.0


def merge_adapters(transformer: Any, adapters: Sequence[Adapter]) -> None:
    """Add adapters to a transformer's weights.

    Args:
        transformer: ``diffusers.AceStepTransformer1DModel``.
        adapters: in any order: what they add is summed.

    Raises:
        BackendUnavailable: the library for it is not installed.
        CheckpointNotFound: there is no adapter at a path.
        CheckpointInvalid: an adapter is corrupt, of a kind that is not supported, or made for another model.
    """
    if find_spec("peft") is None:
        raise BackendUnavailable("LoRA adapters need peft: pip install 'acestep-otel[lora]'")
    for adapter in adapters:
        file = _adapter_file(adapter.path)
        scale = adapter.scale * _trained_scale(file)
        _load(transformer, file)
        transformer.set_adapters([_NAME], [scale])
        transformer.fuse_lora()
        transformer.unload_lora()
    transformer.requires_grad_(False)


def _adapter_file(path: Path) -> Path:
    if path.is_file():
        return path
    for name in _FILES:
        if (path / name).is_file():
            return path / name
    raise CheckpointNotFound(f"no LoRA adapter at {path}: give a safetensors file, or a folder with {_FILES[0]}")


def _load(transformer: Any, file: Path) -> None:
    # Imported here because the loaders of every model of diffusers come with it.
    from diffusers.loaders.lora_pipeline import AceStepLoraLoaderMixin

    # Read once for its errors, which name the file.
    TensorFiles([file])
    try:
        state, metadata = AceStepLoraLoaderMixin.lora_state_dict(
            str(file), use_safetensors=True, local_files_only=True, return_lora_metadata=True
        )
        _require_places(transformer, state, file)
        AceStepLoraLoaderMixin.load_lora_into_transformer(state, transformer, adapter_name=_NAME, metadata=metadata)
    except (ValueError, TypeError, KeyError, RuntimeError, OSError) as error:
        raise CheckpointInvalid(f"{file} cannot be merged: {' '.join(str(error).split())}") from error


def _require_places(transformer: Any, state: Mapping[str, torch.Tensor], file: Path) -> None:
    """The loader passes over tensors that it has no place for; a song would then be made with half an adapter."""
    shapes = {
        f"{_ROLE}{name}": layer.weight.shape
        for name, layer in transformer.named_modules()
        if isinstance(layer, nn.Linear)
    }
    for name, tensor in state.items():
        layer, _, factor = name.partition(".lora_")
        if layer not in shapes or factor not in ("A.weight", "B.weight"):
            raise CheckpointInvalid(f"{file} has the tensor {name}, which is no LoRA of a linear layer of this model")
        rows, columns = shapes[layer]
        expected = (tensor.shape[0], columns) if factor == "A.weight" else (rows, tensor.shape[1])
        if tuple(tensor.shape) != expected:
            raise CheckpointInvalid(f"{file} has {name} of shape {list(tensor.shape)}, its layer is {rows} x {columns}")


def _trained_scale(file: Path) -> float:
    """The scale of PEFT's configuration file, which diffusers does not read: without it, it takes alpha as the rank.

    Raises:
        CheckpointInvalid: the configuration asks for what the merge cannot do.
    """
    path = file.parent / _CONFIG
    if file.name != _FILES[0] or not path.exists():
        return 1.0
    config = read_json(path)
    unsupported = [key for key in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save") if config.get(key)]
    if unsupported:
        raise CheckpointInvalid(f"{path} sets {unsupported[0]}, which is not supported")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, (int, float)):
        raise CheckpointInvalid(f"{path} has no usable r and lora_alpha")
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
