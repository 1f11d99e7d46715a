"""vLLM's two interfaces for logits processors, both handing their logits to the selector.

Which one applies depends on the engine's model runner: V1, or V2, which vLLM takes where it has Triton (CUDA).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.logits_processor.interface import LogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as LogitsProcessorV2

from acestep.planner.backends.vllm.selection import ROW, TokenSelector

if TYPE_CHECKING:
    import torch


def processor_class(selector: TokenSelector, *, v2: bool) -> type[Any]:
    """A processor class of the interface that the engine will ask for, bound to a selector.

    Args:
        selector: decides the tokens.
        v2: whether Model Runner V2 will run.
    """
    # The engine makes the instance itself, so the class has to know the selector.
    return type("SelectingProcessor", (_ProcessorV2 if v2 else _ProcessorV1,), {"_selector": selector})


class _ProcessorV1(LogitsProcessor):
    """Interface of Model Runner V1: receives changes of the batch, then its logits."""

    _selector: TokenSelector

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:  # noqa: ARG002
        self._rows: dict[int, int] = {}

    def is_argmax_invariant(self) -> bool:
        """The token is decided here, so never."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow requests that come, go and move."""
        process_dict_updates(self._rows, batch_update, lambda params, *_: _row_of(params))

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Leave each of our rows one token."""
        places = sorted(self._rows)
        self._selector.select(logits, places, [self._rows[place] for place in places])
        return logits


class _ProcessorV2(LogitsProcessorV2):
    """Interface of Model Runner V2: requests keep a slot, and every batch says which slots it holds."""

    _selector: TokenSelector

    def __init__(self, vllm_config: Any, req_states: Any) -> None:  # noqa: ARG002
        self._rows: dict[int, int] = {}

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Remember the row of a slot, which may have been another request's."""
        self._rows.pop(req_idx, None)
        if (row := _row_of(sampling_params)) is None:
            return False
        self._rows[req_idx] = row
        return True

    def apply(self, logits: torch.Tensor, ctx: Any) -> torch.Tensor:
        """Leave each of our rows one token."""
        slots = ctx.idx_mapping_np.tolist()
        places = [place for place, slot in enumerate(slots) if slot in self._rows]
        self._selector.select(logits, places, [self._rows[slots[place]] for place in places])
        return logits


def _row_of(params: Any) -> int | None:
    row: int | None = (params.extra_args or {}).get(ROW)
    return row
