"""Modules without memory: built on the meta device, matched with stored tensors, then given their values.

Everything is checked before the first tensor is read, and every tensor is read once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, NamedTuple

import torch
from diffusers import AceStepTransformer1DModel, AutoencoderOobleck
from diffusers.pipelines.ace_step import AceStepAudioTokenDetokenizer, AceStepAudioTokenizer, AceStepConditionEncoder
from torch import nn
from transformers import Qwen3Config, Qwen3Model

from acestep.errors import CheckpointInvalid
from acestep.weights.tensor_files import TensorFiles

RENDERER_MODULES: Final[Mapping[str, Any]] = {
    "transformer": AceStepTransformer1DModel,
    "condition_encoder": AceStepConditionEncoder,
    "audio_tokenizer": AceStepAudioTokenizer,
    "audio_token_detokenizer": AceStepAudioTokenDetokenizer,
    "vae": AutoencoderOobleck,
}
"""diffusers' classes by their name in ``RendererModels``, which is also their folder in a diffusers repository."""
AUDIO_ENCODER_MODULES: Final = ("audio_tokenizer", "vae")
"""Those of them that turn audio into codes."""


def empty_module(role: str, config: Mapping[str, Any]) -> Any:
    """A module of diffusers on the meta device.

    Args:
        role: a key of ``RENDERER_MODULES``.
        config: arguments of its class; unknown ones are omitted.
    """
    with warnings.catch_warnings(), torch.device("meta"):
        # diffusers' VAE uses a form of weight norm that torch has deprecated; a caller cannot change that.
        warnings.filterwarnings("ignore", message=".*weight_norm.*", category=FutureWarning)
        return RENDERER_MODULES[role].from_config(dict(config))


def empty_qwen3(config: Qwen3Config) -> Qwen3Model:
    """A Qwen3 model without a head, on the meta device."""
    with torch.device("meta"):
        return Qwen3Model(config)


def restore_rotary_frequencies(model: Qwen3Model, device: torch.device) -> None:
    """Recompute what the constructor computed on the meta device; in float32, whatever the weights are in."""
    model.rotary_emb = type(model.rotary_emb)(config=model.config).to(device)


def restore_quantizer(audio_tokenizer: Any) -> None:
    """Recompute what the quantizer's constructor computed on the meta device: levels, basis and scales."""
    quantizer = audio_tokenizer.quantizer
    with torch.random.fork_rng(devices=[]):
        computed = type(quantizer)(dim=1, levels=quantizer.levels, num_quantizers=quantizer.num_quantizers)
    for name, buffer in computed.named_buffers():
        setattr(quantizer, name, buffer.to(quantizer.project_in.weight.device))


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
        device: of the weights.
        dtype: number type of the weights.
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
    """Where each stored tensor belongs, after checking that stored tensors and modules match exactly.

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
            f"{files.folder} has the tensor {extra[0]}{_and_more(extra)}, which this architecture does not have"
        )
    for name, slot in slots.items():
        tensor = files.tensors[name]
        if tensor.shape != slot.shape:
            raise CheckpointInvalid(
                f"{name} in {tensor.file} has shape {list(tensor.shape)}, but the configuration requires "
                f"{list(slot.shape)}"
            )
    return slots


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
