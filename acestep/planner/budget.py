"""The language model as the planner receives it, and whether a phase fits it, checked before its first forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from acestep.errors import BudgetExceeded
from acestep.memory_cap import effective_free_memory

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


_POSITION_BLOCK: Final = 512
"""Positions are reserved in blocks, so that songs of nearly the same length use the same memory."""


def rounded_positions(positions: int) -> int:
    """Positions that are reserved for this many."""
    return -(-positions // _POSITION_BLOCK) * _POSITION_BLOCK


@dataclass(frozen=True, slots=True)
class PlannerBudget:
    """Limits of the language model on its device.

    Attributes:
        context_limit: positions that one sequence may take, prompt and output together.
        bytes_per_position: key-value memory of one position of one row.
        free_bytes: memory that is free now; ``None`` where it is not limited in advance (no CUDA).
        row_limit: rows that run together; ``None`` where only memory limits them.
    """

    context_limit: int
    bytes_per_position: int
    free_bytes: Callable[[], int | None]
    row_limit: int | None = None

    @classmethod
    def of(cls, model: LanguageModel, held_bytes: Callable[[], int] = lambda: 0) -> PlannerBudget:
        """Limits of a loaded model.

        Args:
            model: the language model.
            held_bytes: memory that the backend has allocated for keys and values, and would use again.
        """
        # Not the model itself: the limits must not keep a reference to its weights when it is unloaded.
        device = model.device

        def free_bytes() -> int | None:
            free = effective_free_memory(device)
            return None if free is None else free + held_bytes()

        return cls(
            context_limit=model.context_limit,
            bytes_per_position=bytes_per_position(model),
            free_bytes=free_bytes,
        )

    def check(self, stage: str, *, prompt_tokens: int, output_tokens: int, rows: int) -> None:
        """Reject what does not fit.

        Args:
            stage: ``lm.cot``, ``lm.codes`` or ``lm.lyrics``.
            prompt_tokens: of the longest prompt.
            output_tokens: most tokens that will follow it.
            rows: sequences that run together.

        Raises:
            BudgetExceeded: too many positions, or too little memory for keys and values.
        """
        positions = prompt_tokens + output_tokens
        if positions > self.context_limit:
            raise BudgetExceeded(
                f"a prompt of {prompt_tokens} tokens and {output_tokens} tokens of output need {positions} positions, "
                f"but the language model has {self.context_limit}: shorten the lyrics or the duration",
                stage=stage,
            )
        if self.row_limit is not None and rows > self.row_limit:
            raise BudgetExceeded(
                f"{rows} rows were requested (one per song, two with guidance), but the language model's engine was "
                f"started for {self.row_limit}: generate fewer songs at once, or load it for more",
                stage=stage,
            )
        reserved = rounded_positions(positions)
        needed, free = reserved * rows * self.bytes_per_position, self.free_bytes()
        if free is not None and needed > free:
            raise BudgetExceeded(
                f"keys and values of {rows} rows of {reserved} positions need {needed / 2**30:.2f} GiB, but only "
                f"{free / 2**30:.2f} GiB are free: generate fewer songs at once, or shorter ones",
                stage=stage,
            )


def bytes_per_position(model: LanguageModel) -> int:
    """Key-value memory of one position of one row, over all layers."""
    config: Any = model.body.config
    per_layer: int = 2 * config.num_key_value_heads * config.head_dim * model.head.element_size()
    return int(config.num_hidden_layers) * per_layer
