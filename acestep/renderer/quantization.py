"""The diffusion transformer's weights in eight bits, by torchao."""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import nn
from torchao.quantization import (
    Float8WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    PerGroup,
    quantize_,
)

from acestep.placement import Quantization

GROUP_SIZE: Final = 128
"""Weights that share a scale where only weights are in int8. With one scale per row, PyTorch's compiler makes the
product ``_weight_int8pack_mm``, which is meant for a single token and takes hundreds of times as long for a song."""


def quantize(transformer: Any, form: Quantization, device: torch.device) -> None:
    """Quantise the linear layers of the transformer's blocks in place; they hold 96 % of its weights.

    One block after the other goes to the device and comes back, so that the device never holds the whole transformer
    in its own dtype. What embeds the timestep and the conditions stays as it is: it works outside the compiled blocks.

    Args:
        transformer: ``diffusers.AceStepTransformer1DModel`` on any device.
        form: of the weights (and of the activations, for ``w8a8_dynamic``).
        device: where the models run.
    """
    for block in transformer.layers:
        home = next(block.parameters()).device
        quantize_(nn.Module.to(block, device), _config(form, block))
        nn.Module.to(block, home)


def _config(form: Quantization, block: nn.Module) -> Any:
    """What torchao shall do; it would also switch process-wide settings of the compiler, which all else pays for."""
    if form == "fp8_weight_only":
        return Float8WeightOnlyConfig(set_inductor_config=False)
    if form == "w8a8_dynamic":
        return Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    widths = (layer.in_features for layer in block.modules() if isinstance(layer, nn.Linear))
    return Int8WeightOnlyConfig(granularity=PerGroup(math.gcd(GROUP_SIZE, *widths)), set_inductor_config=False)
