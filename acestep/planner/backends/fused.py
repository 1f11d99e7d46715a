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

_CAPABILITY: Final = (8, 0)
"""Oldest compute capability whose tensor cores multiply bfloat16 and whose shared memory holds the blocks."""


def can_fuse(model: LanguageModel) -> bool:
    """Whether the kernels can run on the model's device in its dtype."""
    return (
        model.device.type == "cuda"
        and model.dtype == torch.bfloat16
        and torch.cuda.get_device_capability(model.device) >= _CAPABILITY
        and find_spec("triton") is not None
        and knows(model.body.config)
    )


def knows(config: Any) -> bool:
    """Whether the kernels compute what this architecture does, at its sizes."""
    sizes = (config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim)
    return (
        config.model_type == "qwen3"
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
    """The body's forward pass for a few tokens over all rows.

    On CUDA each shape is recorded as a graph when it first occurs. Graphs hold the addresses of weights and cache: a
    new one of either needs a new instance.

    Args:
        model: the language model.
        cache: of the rows.
    """

    def __init__(self, model: LanguageModel, cache: KeyValueCache) -> None:
        from acestep.planner.backends import kernels

        self._kernels: Any = kernels
        self._body: Any = model.body
        self._cache = cache
        config: Any = model.body.config
        self._heads, self._kv_heads, self._head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        # Attention's shares of one lane, head and program; every layer uses the same memory.
        shares = (kernels.LANE_LIMIT, self._heads, kernels.SPLITS)
        self._mixed = torch.empty(*shares, self._head_dim, device=model.device)
        self._maxima, self._sums = (torch.empty(shares, device=model.device) for _ in range(2))
        # Back at zero after every launch.
        self._arrivals = torch.zeros(kernels.LANE_LIMIT, self._kv_heads, dtype=torch.int32, device=model.device)
        self._passes: dict[tuple[int, int], TensorFunction] = {}

    def fits(self, rows: int, tokens: int) -> bool:
        """Whether a pass over ``tokens`` tokens in each row is small enough."""
        return bool(rows * _padded(tokens) <= self._kernels.LANE_LIMIT)

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
        run = self._passes.get((rows, width))
        if run is None:
            run = self._passes[rows, width] = captured(self._run, ids, places)
        return run(ids, places)[:, :tokens]

    def _run(self, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        rows, tokens = ids.shape
        places = places.flatten()
        hidden = functional.embedding(ids.flatten(), self._body.embed_tokens.weight)
        for index, layer in enumerate(self._body.layers):
            self._attend(layer, index, hidden, places, tokens)
            self._feed_forward(layer, hidden)
        norm = self._body.norm
        normed = functional.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)
        return normed.view(rows, tokens, -1)

    def _attend(self, layer: Any, index: int, hidden: torch.Tensor, places: torch.Tensor, tokens: int) -> None:
        """The attention half of a layer: adds to ``hidden``, shape ``[lanes, hidden]``."""
        kernels, attention = self._kernels, layer.self_attn
        lanes, width = hidden.shape
        q_size, kv_size = self._heads * self._head_dim, self._kv_heads * self._head_dim
        qkv = hidden.new_empty(lanes, q_size + 2 * kv_size)
        tile = _tile(kv_size, width)
        kernels.project_inputs[(qkv.shape[1] // tile["N_BLOCK"],)](
            hidden,
            layer.input_layernorm.weight,
            attention.q_proj.weight,
            attention.k_proj.weight,
            attention.v_proj.weight,
            qkv,
            lanes,
            layer.input_layernorm.variance_epsilon,
            K=width,
            Q=q_size,
            KV=kv_size,
            **tile,
        )
        attended = hidden.new_empty(lanes, q_size)
        kernels.attend[(lanes, self._kv_heads, kernels.SPLITS)](
            qkv,
            attention.q_norm.weight,
            attention.k_norm.weight,
            self._body.rotary_emb.inv_freq,
            places,
            self._cache.keys[index],
            self._cache.values[index],
            self._cache.row_slots,
            self._mixed,
            self._maxima,
            self._sums,
            self._arrivals,
            attended,
            attention.q_norm.variance_epsilon,
            self._head_dim**-0.5,
            TOKENS=tokens,
            HEADS=self._heads,
            KV_HEADS=self._kv_heads,
            HALF=self._head_dim // 2,
            KEY_BLOCK=kernels.KEY_BLOCK,
            SPLITS=kernels.SPLITS,
            num_warps=4,
            num_stages=3,
        )
        self._add_projected(attended, attention.o_proj.weight, hidden)

    def _feed_forward(self, layer: Any, hidden: torch.Tensor) -> None:
        """The other half: adds to ``hidden``."""
        gate, up = layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight
        inner, width = gate.shape
        activated = hidden.new_empty(len(hidden), inner)
        tile = _tile(inner, width)
        norm = layer.post_attention_layernorm
        self._kernels.gate[(inner // tile["N_BLOCK"],)](
            hidden, norm.weight, gate, up, activated, len(hidden), norm.variance_epsilon, K=width, N=inner, **tile
        )
        self._add_projected(activated, layer.mlp.down_proj.weight, hidden)

    def _add_projected(self, lanes: torch.Tensor, weight: torch.Tensor, hidden: torch.Tensor) -> None:
        n, k = weight.shape
        tile = _tile(n, k)
        self._kernels.project_onto[(n // tile["N_BLOCK"],)](lanes, weight, hidden, len(lanes), K=k, N=n, **tile)


def weight_addresses(model: LanguageModel) -> tuple[int, ...]:
    """Where the weights lie; when it changes they were moved."""
    tensors = (*model.body.parameters(), *model.body.buffers())
    return tuple(tensor.data_ptr() for tensor in tensors)


def _padded(tokens: int) -> int:
    """The next power of two, so that chunks of forced text need few graphs."""
    return 1 << (tokens - 1).bit_length()


def _tile(n: int, k: int) -> dict[str, int]:
    """Block sizes for weights of shape ``[n, k]``: narrow enough to give every multiprocessor a block."""
    return {"N_BLOCK": min(16, n & -n), "K_BLOCK": min(256, k & -k), "num_warps": 4, "num_stages": 4}
