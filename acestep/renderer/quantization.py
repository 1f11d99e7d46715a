"""The diffusion transformer's weights in eight bits, by torchao."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from acestep.placement import Quantization


def quantize(transformer: Any, form: Quantization, device: torch.device) -> None:
    """Quantise the linear layers of the transformer's blocks in place; they hold 96 % of its weights.

    One block after the other goes to the device and comes back, so that the device never holds the whole transformer
    in its own dtype. What embeds the timestep and the conditions stays as it is: it works outside the compiled blocks.

    Args:
        transformer: ``diffusers.AceStepTransformer1DModel`` on any device.
        form: of the weights (and of the activations, for ``w8a8_dynamic``).
        device: where the models run.
    """
    with _quiet():
        from torchao.quantization import quantize_

        config = _config(form)
        for block in transformer.layers:
            home = next(block.parameters()).device
            quantize_(nn.Module.to(block, device), config)
            nn.Module.to(block, home)


def _config(form: Quantization) -> Any:
    from torchao.quantization import (
        Float8WeightOnlyConfig,
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
    )

    match form:
        case "int8_weight_only":
            return Int8WeightOnlyConfig()
        case "fp8_weight_only":
            return Float8WeightOnlyConfig()
        case "w8a8_dynamic":
            return Int8DynamicActivationInt8WeightConfig()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torchao's import has to say about kernels for other machines and about deprecations in PyTorch."""
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
