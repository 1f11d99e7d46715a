"""Compiling what runs: each block of the transformer, and the decoder of the VAE."""

from __future__ import annotations

from typing import Final

import torch

from acestep.renderer.attention import NativeAttention
from acestep.renderer.models import RendererModels

BACKEND: Final = "inductor"
GRAPHS_PER_BLOCK: Final = 64
"""Most graphs of a block's code in one process: each form of weights, kind of layer, single song and batch has its own,
and PyTorch's limit of eight would end a long benchmark with an error."""


_DECODER_OPTIONS: Final = {"layout_optimization": False}
"""Convolutions in the layout that they have: as fast as in the other, and compiled in half the time."""


def compile_models(models: RendererModels, backend: str = BACKEND) -> None:
    """Let the transformer's blocks and the VAE's decoder be compiled when they first run.

    A block is one graph for any length and batch; all blocks of a kind share it. Nothing is traced or timed inside.

    Args:
        models: compiled in place.
        backend: of ``torch.compile``.
    """
    torch._dynamo.config.recompile_limit = max(GRAPHS_PER_BLOCK, torch._dynamo.config.recompile_limit)
    for block in models.transformer.layers:
        for attention in (block.self_attn, block.cross_attn):
            attention.set_processor(NativeAttention())
        block.compile(fullgraph=True, dynamic=True, backend=backend)
    # Options are Inductor's alone.
    options = {"options": _DECODER_OPTIONS} if backend == BACKEND else {}
    models.vae.decoder.compile(fullgraph=True, dynamic=True, backend=backend, **options)
