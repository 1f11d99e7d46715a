"""Stored tensors into modules that were built without memory: everything checked first, then every tensor read once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import torch
from torch import nn

from acestep.errors import CheckpointInvalid
from acestep.weights.tensor_files import TensorFiles

NameOf = Callable[[str, str], str | None]
"""From a module's role and its tensor's name to the stored tensor; ``None`` when that is kept elsewhere."""


class Slot(NamedTuple):
    """A tensor of a module that a stored tensor belongs to."""

    role: str
    name: str
    shape: tuple[int, ...]


def assign(
    modules: Mapping[str, nn.Module],
    files: TensorFiles,
    name_of: NameOf,
    *,
    device: torch.device,
    dtype: torch.dtype,
    ignored: Collection[str] = (),
) -> None:
    """Give modules on the meta device their stored values.

    Args:
        modules: by role; afterwards in eval mode and without gradients.
        files: what is stored.
        name_of: which stored tensor belongs to which of the modules'.
        device: where the weights shall live.
        dtype: number type that they shall have.
        ignored: stored tensors that no module needs.

    Raises:
        CheckpointInvalid: a tensor is missing, left over or of another shape; nothing was read.
    """
    slots = match(modules, files, name_of, ignored=ignored)
    values = {stored: torch.empty(slot.shape, device=device, dtype=dtype) for stored, slot in slots.items()}
    files.read_into(values)
    for role, module in modules.items():
        state = {slot.name: values[stored] for stored, slot in slots.items() if slot.role == role}
        module.load_state_dict(state, strict=False, assign=True)
        module.eval().requires_grad_(False)


def match(
    modules: Mapping[str, nn.Module], files: TensorFiles, name_of: NameOf, *, ignored: Collection[str] = ()
) -> dict[str, Slot]:
    """Where each stored tensor belongs, after making sure that each has its place and each place its tensor.

    Args:
        modules: by role; their values are not looked at.
        files: what is stored.
        name_of: which stored tensor belongs to which of the modules'.
        ignored: stored tensors that no module needs.

    Raises:
        CheckpointInvalid: a tensor is missing, left over or of another shape.
    """
    slots = {
        stored: Slot(role, name, tuple(value.shape))
        for role, module in modules.items()
        for name, value in module.state_dict().items()
        if (stored := name_of(role, name)) is not None
    }
    missing = [name for name in slots if name not in files.tensors]
    if missing:
        raise CheckpointInvalid(f"{files.folder} lacks the tensor {missing[0]}{_and_more(missing)}")
    extra = [name for name in files.tensors if name not in slots and name not in ignored]
    if extra:
        raise CheckpointInvalid(
            f"{files.folder} has the tensor {extra[0]}{_and_more(extra)}, which this architecture has no place for"
        )
    for name, slot in slots.items():
        tensor = files.tensors[name]
        if tensor.shape != slot.shape:
            raise CheckpointInvalid(
                f"{name} in {tensor.file} has shape {list(tensor.shape)}, but the configuration asks for "
                f"{list(slot.shape)}"
            )
    return slots


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
