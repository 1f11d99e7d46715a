"""The language model as the planner receives it: weights, tokens and what is known about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch
    from torch import nn

    from acestep.planner.vocabulary import Vocabulary

CONTEXT_LIMIT: Final = 8_192
"""Positions that the planner budgets for: 3,000 codes (600 s) and long lyrics fit."""


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A loaded 5 Hz language model.

    Attributes:
        name: for example ``acestep-5Hz-lm-1.7B``.
        weights: ``synthetic`` or ``checkpoint``.
        body: ``transformers.Qwen3Model`` (no head), in eval mode, on ``device``.
        head: the tied embedding matrix, shape ``[vocabulary size, hidden]``, a view of the body's own weights.
        vocabulary: tokenizer and token layout.
        device: where the weights live.
        dtype: of the weights.
        context_limit: positions that one sequence may take (prompt and output together).
    """

    name: str
    weights: str
    body: nn.Module
    head: torch.Tensor
    vocabulary: Vocabulary
    device: torch.device
    dtype: torch.dtype
    context_limit: int
