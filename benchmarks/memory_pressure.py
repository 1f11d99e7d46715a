"""Memory of a card, filled or fragmented at the moment when the decode of a song has been planned."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import torch

from acestep.renderer.decode_fallbacks import DecodeStep
from acestep.renderer.decoder import VaeDecoder

BLOCK: Final = 20 * 2**20
"""Bytes of a block of the fragmented cache: no tensor of a tile fits into it."""
AUDIO: Final = 2**27
"""Bytes of one larger block, for the audio of ten minutes: it is allocated before the first tile."""
SPARED_BLOCKS: Final = 4
"""Blocks that the driver keeps: it cannot give out all that it calls free."""
PART: Final = 2**30
"""Bytes of a tensor that fills the card."""
GRANULE: Final = 2 * 2**20
"""The allocator's large blocks are multiples of this."""


@contextmanager
def on_planned(decoder: VaeDecoder, action: Callable[[], object]) -> Iterator[list[float]]:
    """Call something each time that the tiles of a decode have been planned, before it begins; yields its seconds."""
    plan = decoder.fallbacks
    spent: list[float] = []

    def planned(frames: int) -> tuple[DecodeStep, ...]:
        steps = plan(frames)
        if decoder.models.device.type == "cuda":
            torch.cuda.synchronize(decoder.models.device)
        begun = time.perf_counter()
        action()
        spent.append(time.perf_counter() - begun)
        return steps

    decoder.fallbacks = planned  # type: ignore[method-assign]
    try:
        yield spent
    finally:
        del decoder.fallbacks


def free_bytes(device: torch.device) -> int:
    """Memory of the card that no process has, once the allocator's cache is empty."""
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


@contextmanager
def filled(decoder: VaeDecoder, leaves: int) -> Iterator[list[float]]:
    """Other memory of the process is in use from the planning of the decode on, and leaves some bytes."""
    device = decoder.models.device
    held: list[torch.Tensor] = []

    def fill() -> None:
        size = max(0, free_bytes(device) - leaves)
        for part in (PART,) * (size // PART) + (size % PART // GRANULE * GRANULE,):
            try:
                held.append(torch.empty(part, dtype=torch.uint8, device=device))
            except torch.OutOfMemoryError:
                # The driver keeps some of what it calls free.
                break

    try:
        with on_planned(decoder, fill) as spent:
            yield spent
    finally:
        held.clear()
        torch.cuda.empty_cache()


@contextmanager
def fragmented(decoder: VaeDecoder) -> Iterator[list[float]]:
    """The allocator keeps all memory that is free when the decode has been planned, in small blocks."""
    device = decoder.models.device

    def fill() -> None:
        count = max(0, (free_bytes(device) - AUDIO) // BLOCK - SPARED_BLOCKS)
        sizes = (AUDIO, *(BLOCK,) * count)
        blocks = [torch.empty(size, dtype=torch.uint8, device=device) for size in sizes]
        # Back to the allocator, not to the driver.
        blocks.clear()

    try:
        with on_planned(decoder, fill) as spent:
            yield spent
    finally:
        torch.cuda.empty_cache()
