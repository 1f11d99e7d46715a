"""A forward pass of Qwen3 over a few tokens, in Triton kernels on the weights of the ``transformers`` body."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn import functional

from acestep.planner.backends.capture import TensorFunction, captured
from acestep.planner.models import LanguageModel

if TYPE_CHECKING:
    from acestep.planner.backends.cache import KeyValueCache

LANE_LIMIT: Final = 16
"""Tokens of one pass, over all rows."""


def can_fuse(model: LanguageModel) -> bool:
    """Whether the kernels can run here and know this architecture."""
    config: Any = model.body.config
    sizes = (config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim)
    return (
        find_spec("triton") is not None
        and getattr(config, "model_type", None) == "qwen3"
        and not config.attention_bias
        and config.hidden_act == "silu"
        and config.rope_parameters["rope_type"] == "default"
        and "sliding_attention" not in config.layer_types
        and all(size % 16 == 0 for size in sizes)
        and config.head_dim >= 32
        and config.head_dim.bit_count() == 1
        and config.num_attention_heads // config.num_key_value_heads <= 16
    )


class FusedForward:
    """The body's forward pass for up to ``LANE_LIMIT`` tokens over all rows.

    On CUDA each shape is recorded as a graph when it first occurs. Graphs hold the addresses of weights and cache: a
    new one of either needs a new instance.

    Args:
        model: the language model.
        cache: of the rows.
    """

    def __init__(self, model: LanguageModel, cache: KeyValueCache) -> None:
        from acestep.planner.backends import kernels

        self._kernels = kernels
        self._body: Any = model.body
        self._cache = cache
        self._scratch = kernels.Scratch.of(model)
        self._graphs: dict[tuple[int, int], TensorFunction] = {}

    def fits(self, rows: int, tokens: int) -> bool:
        """Whether a pass over ``tokens`` tokens in each row is small enough."""
        return rows * _padded(tokens) <= LANE_LIMIT

    def __call__(self, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Run tokens behind those of the cache.

        Args:
            ids: shape ``[rows, tokens]``.
            places: of the tokens in their rows, the same shape.

        Returns:
            Hidden states after the last norm, shape ``[rows, tokens, hidden]``; overwritten by the next call.
        """
        rows, tokens = ids.shape
        width = _padded(tokens)
        if width > tokens:
            # A token without a place is left out of everything.
            ids = functional.pad(ids, (0, width - tokens))
            places = functional.pad(places, (0, width - tokens), value=-1)
        run = self._graphs.get((rows, width))
        if run is None:
            run = self._graphs[rows, width] = captured(self._run, ids, places)
        return run(ids, places)[:, :tokens]

    def _run(self, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        rows, tokens = ids.shape
        places = places.flatten()
        hidden = functional.embedding(ids.flatten(), self._body.embed_tokens.weight)
        frequencies = self._body.rotary_emb.inv_freq
        for index, layer in enumerate(self._body.layers):
            keys, values = self._cache.keys[index], self._cache.values[index]
            self._kernels.run_layer(layer, hidden, places, frequencies, keys, values, self._cache.row_slots, self._scratch, tokens)
        norm = self._body.norm
        normed = functional.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)
        return normed.view(rows, tokens, -1)


def weight_addresses(model: LanguageModel) -> tuple[int, ...]:
    """Where the weights lie; when it changes they were moved."""
    tensors = (*model.body.parameters(), *model.body.buffers())
    return tuple(tensor.data_ptr() for tensor in tensors)


def _padded(tokens: int) -> int:
    """The next power of two, so that chunks of forced text need few graphs."""
    return 1 << (tokens - 1).bit_length()
