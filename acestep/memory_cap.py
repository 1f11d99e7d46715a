"""A hard limit on CUDA memory, to reproduce on a larger card how a smaller one runs out of memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

import torch

CONTEXT_GIB: Final = 0.5
"""Memory of a card that a process uses besides its tensors: the CUDA context and the libraries' workspaces."""
_SMALLEST_BUDGET_GIB: Final = 0.5
_SMALLEST_FRACTION: Final = 0.01
_GIB: Final = 2**30


@dataclass(frozen=True, slots=True)
class MemoryCap:
    """Memory of a card that a process may use.

    Attributes:
        limit_gib: memory in GiB of the simulated card; the card's own when nothing is capped.
        allocator_budget_bytes: what the caching allocator may reserve.
        fraction: the same as a share of the card's memory; 1 when nothing is capped.
    """

    limit_gib: float
    allocator_budget_bytes: int
    fraction: float

    @classmethod
    def of(cls, limit_gib: float | None, total_bytes: int) -> Self:
        """The cap that makes a card behave like one of ``limit_gib``.

        Half a GiB of the limit is reserved for the CUDA context. A limit that is not below the card's own memory caps
        nothing.

        Args:
            limit_gib: ``None`` for no limit.
            total_bytes: memory of the card.
        """
        total_gib = total_bytes / _GIB
        if limit_gib is None or limit_gib >= total_gib:
            return cls(total_gib, total_bytes, 1.0)
        budget = max(_SMALLEST_BUDGET_GIB, limit_gib - CONTEXT_GIB)
        fraction = min(max(budget / total_gib, _SMALLEST_FRACTION), 1.0)
        return cls(limit_gib, int(fraction * total_bytes), fraction)

    @property
    def is_capped(self) -> bool:
        """Whether the process may use less than the whole card."""
        return self.fraction < 1.0


def enforce_memory_cap(device: torch.device, limit_gib: float | None) -> MemoryCap | None:
    """Limit the memory that this process may allocate from now on; call it before anything is loaded.

    The share is always set, also to 1, so that an earlier cap does not stay in effect.

    Args:
        device: the device that models will be loaded onto.
        limit_gib: memory of the simulated card in GiB; ``None`` for no limit.

    Returns:
        The cap, or ``None`` off CUDA, where the allocator has none.
    """
    if device.type != "cuda":
        return None
    cap = MemoryCap.of(limit_gib, torch.cuda.get_device_properties(device).total_memory)
    torch.cuda.set_per_process_memory_fraction(cap.fraction, device)
    return cap


def effective_free_memory(device: torch.device) -> int | None:
    """Bytes that this process can still allocate, or ``None`` off CUDA.

    The free memory of the device and the allocator's unused reserve, up to what the cap leaves.
    """
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.memory_allocated(device)
    reserve = torch.cuda.memory_reserved(device) - allocated
    budget = int(torch.cuda.get_per_process_memory_fraction(device) * total)
    return max(0, min(free + reserve, budget - allocated))
