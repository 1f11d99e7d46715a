"""Keys and values of all layers, in buffers that stay where they are.

The buffers are slots, divided among the rows of each phase. A row's tokens have its positions 0, 1, 2 ..., so rows of
different lengths need no padding: a token attends to the positions up to its own, and later positions are overwritten
before they are read. Row 0 starts at slot 0 whatever the division, so one phase can continue from another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch

from acestep.planner.backends.pt.fused import CacheAddresses
from acestep.planner.budget import LanguageModel


class KeyValueCache:
    """Buffers of all layers.

    Args:
        model: the language model.
        slots: tokens that there is room for, over all rows.

    Attributes:
        keys: shape ``[layers, slots, key-value heads, head size]``; rotary embedding is in them.
        values: the same shape.
        capacity: slots of each row.
        row_slots: the same on the device, where recorded passes read it.
        held: tokens whose keys and values are in row 0, and from which a later phase may continue.
    """

    def __init__(self, model: LanguageModel, slots: int) -> None:
        config: Any = model.body.config
        shape = (config.num_hidden_layers, slots, config.num_key_value_heads, config.head_dim)
        # Zeros, because attention multiplies masked positions by zero: they must not contain NaN.
        self.keys = torch.zeros(shape, device=model.device, dtype=model.dtype)
        self.values = torch.zeros_like(self.keys)
        self.capacity = slots
        self.row_slots = torch.full((), slots, device=model.device)
        self.held: list[int] = []

    @property
    def slots(self) -> int:
        """Room over all rows."""
        return self.keys.shape[1]

    @property
    def addresses(self) -> CacheAddresses:
        """The buffers for the engine's kernels; not valid after ``grown``."""
        _, _, heads, size = self.keys.shape
        keys, values = self.keys.unbind(), self.values.unbind()
        return CacheAddresses(keys, values, self.row_slots, slot_stride=heads * size, head_stride=size)

    @property
    def nbytes(self) -> int:
        """Memory of all buffers."""
        return self.keys.nbytes + self.values.nbytes

    def set_row_capacity(self, capacity: int) -> None:
        """Give every row this many slots; what is held stays."""
        self.capacity = capacity
        self.row_slots.fill_(capacity)

    def shared_with(self, prompt: Sequence[int]) -> int:
        """Leading tokens of a prompt that row 0 contains; at least one token is left to run."""
        pairs = zip(self.held, prompt[:-1], strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def grown(self, model: LanguageModel, slots: int) -> KeyValueCache:
        """A larger cache with the content of this one, whose buffers are freed."""
        held = [buffer[:, : len(self.held)].clone() for buffer in (self.keys, self.values)]
        del self.keys, self.values
        larger = KeyValueCache(model, slots)
        for buffer, old in zip((larger.keys, larger.values), held, strict=True):
            buffer[:, : len(self.held)] = old
        larger.held = self.held
        return larger

    def spread(self, items: int, rows: int, positions: int) -> None:
        """Copy the first positions of every ``items``-th row to the rows after it."""
        for buffer in (self.keys, self.values):
            for first in range(0, rows, items):
                source = buffer[:, first * self.capacity : first * self.capacity + positions]
                for row in range(first + 1, first + items):
                    buffer[:, row * self.capacity : row * self.capacity + positions] = source


@dataclass(frozen=True, slots=True, eq=False)
class CacheWindow:
    """One pass's view of the cache, as the body of ``transformers`` needs it: stores what is new, returns what is read.

    Attributes:
        cache: the buffers.
        stride: rows from one that takes part to the next.
        places: of the new tokens, shape ``[rows, tokens]``.
        length: places that any of them may attend to.
    """

    cache: KeyValueCache
    stride: int
    places: torch.Tensor
    length: int

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by each attention layer with ``[rows, heads, tokens, head size]``."""
        count = len(self.places)
        row = torch.arange(count, device=self.places.device).unsqueeze(1)
        capacity = self.cache.capacity
        seen = []
        for buffer, new in ((self.cache.keys, keys), (self.cache.values, values)):
            slots = buffer[layer, : count * self.stride * capacity]
            rows = slots.view(-1, capacity, *slots.shape[1:])[:: self.stride]
            rows[row, self.places] = new.transpose(1, 2)
            seen.append(rows[:, : self.length].transpose(1, 2))
        return seen[0], seen[1]
