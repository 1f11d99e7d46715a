"""The language model in mlx-lm, from the weights that PyTorch loaded."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import torch
from mlx_lm.models.qwen3 import Model, ModelArgs

from acestep.planner.budget import LanguageModel


def convert(model: LanguageModel) -> Any:
    """The model's body in mlx-lm, with copies of its weights."""
    config: dict[str, Any] = model.body.config.to_dict()  # type: ignore[operator, union-attr]
    converted = Model(ModelArgs.from_dict(config))
    converted.load_weights([(f"model.{name}", as_mlx(value)) for name, value in model.body.named_parameters()])
    mx.eval(converted.parameters())
    return converted.model


def as_mlx(tensor: torch.Tensor) -> mx.array:
    """A copy as MLX array; bfloat16 goes by its bits, which NumPy has no type for."""
    host = tensor.detach().cpu().contiguous()
    if host.dtype == torch.bfloat16:
        return mx.array(host.view(torch.int16).numpy()).view(mx.bfloat16)
    return mx.array(host.numpy())
