"""The diffusion transformer's weights in eight bits, by torchao."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn
from torchao.quantization import (
    Float8WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    quantize_,
)

from acestep.placement import Quantization

_CONFIGS: Final = {
    "int8_weight_only": Int8WeightOnlyConfig,
    "fp8_weight_only": Float8WeightOnlyConfig,
    "w8a8_dynamic": Int8DynamicActivationInt8WeightConfig,
}


def quantize(transformer: Any, form: Quantization, device: torch.device) -> None:
    """Quantise the linear layers of the transformer's blocks in place; they hold 96 % of its weights.

    One block after the other goes to the device and comes back, so that the device never holds the whole transformer
    in its own dtype. What embeds the timestep and the conditions stays as it is: it works outside the compiled blocks.

    Args:
        transformer: ``diffusers.AceStepTransformer1DModel`` on any device.
        form: of the weights (and of the activations, for ``w8a8_dynamic``).
        device: where the models run.
    """
    config = _CONFIGS[form]()
    for block in transformer.layers:
        home = next(block.parameters()).device
        quantize_(nn.Module.to(block, device), config)
        nn.Module.to(block, home)
