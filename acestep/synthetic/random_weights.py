"""Seeded random weights for any module, and for Qwen3 models, which need more than their stored tensors.

Each tensor is drawn from a generator of its own, seeded by the tensor's name, so the values do not depend on
the order in which tensors are filled, and adding a layer leaves the others as they were.
"""

from __future__ import annotations

import hashlib

import torch
from torch import nn
from transformers import Qwen3Config, Qwen3Model

from acestep.weights.meta_modules import empty_qwen3, restore_rotary_frequencies


def tensor_seed(seed: int, name: str) -> int:
    """Seed of one tensor: 63 bits of SHA-256 over the model's seed and the tensor's name."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def materialise(
    module: nn.Module, *, seed: int, device: torch.device, dtype: torch.dtype, storage: torch.device | None = None
) -> nn.Module:
    """Give a module built on the meta device its memory and seeded values.

    Matrices and convolution kernels get variance 1/fan_in, so activations keep their scale through any depth;
    vectors that multiply (``*norm*.weight``, ``weight_g``) become ones and biases zeros. Floating-point buffers
    that a module computes in its constructor must be set by the caller afterwards: the meta device does not keep their
    values.

    Args:
        module: a module whose parameters may be on the meta device.
        seed: the model's seed.
        device: where values are drawn. Equal bits are guaranteed for ``cpu`` only (one torch version).
        dtype: of all floating-point parameters.
        storage: where the weights are kept; ``device`` when not given. Tensor by tensor, so that the device never
            holds more than one of them.

    Returns:
        The same module, in eval mode, without gradients.
    """
    # diffusers overrides ``to`` with a warning about loaded weights, of which there are none.
    nn.Module.to(module, dtype=dtype)
    module.to_empty(device=storage or device)
    generator = torch.Generator(device=device)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() < 2 or name.endswith("weight_g"):
                parameter.fill_(1.0)
            else:
                generator.manual_seed(tensor_seed(seed, name))
                draw_normal(parameter, parameter[0].numel() ** -0.5, generator)
    return module.eval().requires_grad_(False)


def draw_normal(tensor: torch.Tensor, deviation: float, generator: torch.Generator) -> None:
    """Fill a tensor from a generator that may be of another device, whose values it then holds."""
    if tensor.device.type == generator.device.type:
        tensor.normal_(0.0, deviation, generator=generator)
        return
    drawn = torch.empty(tensor.shape, dtype=tensor.dtype, device=generator.device)
    tensor.copy_(drawn.normal_(0.0, deviation, generator=generator))


def build_qwen3(
    config: Qwen3Config, *, seed: int, device: torch.device, dtype: torch.dtype, storage: torch.device | None = None
) -> Qwen3Model:
    """Build the model without a head.

    Args:
        config: its architecture.
        seed: of its weights.
        device: where they are drawn.
        dtype: of the weights; the rotary frequencies stay in float32, as in a loaded model.
        storage: where they are kept; ``device`` when not given.
    """
    model = empty_qwen3(config)
    materialise(model, seed=seed, device=device, dtype=dtype, storage=storage)
    restore_rotary_frequencies(model, storage or device)
    return model
