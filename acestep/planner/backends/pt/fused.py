"""A forward pass of Qwen3 over a few tokens, in Triton kernels on the weights of the ``transformers`` body."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn import functional

from acestep.cuda_graphs import TensorFunction, captured
from acestep.planner.budget import LanguageModel

if TYPE_CHECKING:
    from acestep.planner.backends.pt.cache import KeyValueCache

_CAPABILITY: Final = (8, 0)
"""Oldest compute capability whose tensor cores multiply bfloat16 and whose shared memory holds the blocks."""
# Launch options for all three models, from 448 combinations that were tried on an H100 (docs/performance.md).
INPUT_TILE: Final = {"N_BLOCK": 16, "K_BLOCK": 64, "K_PARTS": 2, "num_warps": 2, "num_stages": 6}
GATE_TILE: Final = {"N_BLOCK": 16, "K_BLOCK": 64, "K_PARTS": 2, "num_warps": 2, "num_stages": 4}
OUTPUT_TILE: Final = {"N_BLOCK": 8, "K_BLOCK": 128, "K_PARTS": 4, "num_warps": 4, "num_stages": 4}
# The number of programs that share a lane's keys is fixed, so that sums do not depend on the number of lanes.
ATTENTION_TILE: Final = {"KEY_BLOCK": 32, "SPLITS": 16, "num_warps": 2, "num_stages": 3}


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
        and all(size % 64 == 0 for size in sizes)
        and config.head_dim >= 32
        and config.head_dim.bit_count() == 1
        and config.num_attention_heads // config.num_key_value_heads <= 16
    )


class FusedForward:
    """The body's forward pass for a few tokens over all rows.

    On CUDA each shape is recorded as a graph when it first occurs. Graphs contain the addresses of weights and cache:
    if either is replaced, a new instance is needed.

    Args:
        model: the language model.
        cache: of the rows.
    """

    def __init__(self, model: LanguageModel, cache: KeyValueCache) -> None:
        from acestep.planner.backends.pt import kernels

        self._kernels: Any = kernels
        self._body: Any = model.body
        self._cache = cache
        self._device = model.device
        config: Any = model.body.config
        self._heads, self._kv_heads, self._head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        # Every layer uses the same memory. Hidden states, and what the norm after them starts from:
        width = config.hidden_size
        self._share = fitting(OUTPUT_TILE, width, width)["N_BLOCK"]
        self._hidden, self._scaled = (self._lanes(width, model.dtype) for _ in range(2))
        self._squares = self._lanes(width // self._share, torch.float32)
        # Attention's shares of one lane, head and program.
        shares = (kernels.LANE_LIMIT, self._heads, ATTENTION_TILE["SPLITS"])
        self._mixed = torch.empty(*shares, self._head_dim, device=model.device)
        self._maxima, self._sums = (torch.empty(shares, device=model.device) for _ in range(2))
        # Back at zero after every launch.
        self._arrivals = torch.zeros(kernels.LANE_LIMIT, self._kv_heads, dtype=torch.int32, device=model.device)
        self._passes: dict[tuple[int, int], TensorFunction] = {}

    def fits(self, rows: int, tokens: int) -> bool:
        """Whether a pass over ``tokens`` tokens in each row is small enough."""
        return bool(rows * _padded(tokens) <= self._kernels.LANE_LIMIT)

    def __call__(self, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Run tokens after those of the cache.

        Args:
            ids: shape ``[rows, tokens]``.
            places: of the tokens in their rows, the same shape.

        Returns:
            Hidden states after the last norm, shape ``[rows, tokens, hidden]``; overwritten by the next call.
        """
        rows, tokens = ids.shape
        width = _padded(tokens)
        if width > tokens:
            # A token without a place is skipped everywhere.
            ids = functional.pad(ids, (0, width - tokens))
            places = functional.pad(places, (0, width - tokens), value=-1)
        run = self._passes.get((rows, width))
        if run is None:
            run = self._passes[rows, width] = captured(self._run, ids, places)
        return run(ids, places)[:, :tokens]

    def _run(self, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        rows, tokens = ids.shape
        places = places.flatten()
        layers, last_norm = self._body.layers, self._body.norm
        next_norms = [*(layer.input_layernorm for layer in layers[1:]), last_norm]
        self._embed(ids.flatten(), layers[0].input_layernorm)
        for index, (layer, next_norm) in enumerate(zip(layers, next_norms, strict=True)):
            self._attend(layer, index, places, tokens)
            self._feed_forward(layer, len(places), next_norm)
        hidden = self._hidden[: len(places)]
        normed = functional.rms_norm(hidden, last_norm.weight.shape, last_norm.weight, last_norm.variance_epsilon)
        return normed.view(rows, tokens, -1)

    def _embed(self, ids: torch.Tensor, next_norm: Any) -> None:
        width = self._hidden.shape[1]
        self._kernels.embed[(width // self._share,)](
            ids,
            self._body.embed_tokens.weight,
            next_norm.weight,
            self._hidden,
            self._scaled,
            self._squares,
            len(ids),
            N=width,
            N_BLOCK=self._share,
            num_warps=1,
        )

    def _attend(self, layer: Any, index: int, places: torch.Tensor, tokens: int) -> None:
        """The attention half of a layer: adds to the hidden states."""
        kernels, attention, lanes = self._kernels, layer.self_attn, len(places)
        q_size, kv_size = self._heads * self._head_dim, self._kv_heads * self._head_dim
        qkv = self._hidden.new_empty(lanes, q_size + 2 * kv_size)
        tile = fitting(INPUT_TILE, kv_size, self._hidden.shape[1])
        kernels.project_inputs[(qkv.shape[1] // tile["N_BLOCK"],)](
            self._scaled,
            self._squares,
            attention.q_proj.weight,
            attention.k_proj.weight,
            attention.v_proj.weight,
            qkv,
            lanes,
            layer.input_layernorm.variance_epsilon,
            Q=q_size,
            KV=kv_size,
            **self._norm_sizes(),
            **tile,
        )
        attended = self._hidden.new_empty(lanes, q_size)
        kernels.attend[(lanes, self._kv_heads, ATTENTION_TILE["SPLITS"])](
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
            **ATTENTION_TILE,
        )
        self._project_onto(attended, attention.o_proj.weight, layer.post_attention_layernorm)

    def _feed_forward(self, layer: Any, lanes: int, next_norm: Any) -> None:
        """The other half: adds to the hidden states."""
        weights = layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight
        inner, width = weights[0].shape
        activated = self._hidden.new_empty(lanes, inner)
        tile = fitting(GATE_TILE, inner, width)
        epsilon = layer.post_attention_layernorm.variance_epsilon
        self._kernels.gate[(inner // tile["N_BLOCK"],)](
            self._scaled, self._squares, *weights, activated, lanes, epsilon, N=inner, **self._norm_sizes(), **tile
        )
        self._project_onto(activated, layer.mlp.down_proj.weight, next_norm)

    def _project_onto(self, lanes: torch.Tensor, weight: torch.Tensor, next_norm: Any) -> None:
        n, k = weight.shape
        self._kernels.project_onto[(n // self._share,)](
            lanes,
            weight,
            next_norm.weight,
            self._hidden,
            self._scaled,
            self._squares,
            len(lanes),
            K=k,
            N=n,
            **fitting(OUTPUT_TILE, n, k),
        )

    def _norm_sizes(self) -> dict[str, int]:
        """Of what a norm is finished from."""
        return {"K": self._hidden.shape[1], "SHARES": self._squares.shape[1]}

    def _lanes(self, width: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(self._kernels.LANE_LIMIT, width, device=self._device, dtype=dtype)


def weight_addresses(model: LanguageModel) -> tuple[int, ...]:
    """Addresses of the weights; a change means that they were moved."""
    tensors = (*model.body.parameters(), *model.body.buffers())
    return tuple(tensor.data_ptr() for tensor in tensors)


def _padded(tokens: int) -> int:
    """The next power of two, so that chunks of forced text need few graphs."""
    return 1 << (tokens - 1).bit_length()


def fitting(tile: Mapping[str, int], n: int, k: int) -> dict[str, int]:
    """A tile, reduced for weights of shape ``[n, k]`` that are smaller or not a multiple of it."""
    blocks = {"N_BLOCK": min(tile["N_BLOCK"], n & -n), "K_BLOCK": min(tile["K_BLOCK"], (k & -k) // tile["K_PARTS"])}
    return {**tile, **blocks}
