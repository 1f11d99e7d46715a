"""A forward pass of Qwen3 over a few tokens, in Triton kernels, wherever its weights, keys and values are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final

import torch
from torch.nn import functional

from acestep.cuda_graphs import TensorFunction, captured
from acestep.planner.budget import LanguageModel

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
    return can_run(model.device, model.dtype) and knows(model.body.config)


def can_run(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels can run on a device in a dtype."""
    return (
        device.type == "cuda"
        and dtype == torch.bfloat16
        and torch.cuda.get_device_capability(device) >= _CAPABILITY
        and find_spec("triton") is not None
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


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights:
    """Weights of a decoder layer; of a projection, shape ``[out, in]``."""

    input_norm: torch.Tensor
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    query_norm: torch.Tensor
    key_norm: torch.Tensor
    output: torch.Tensor
    inner_norm: torch.Tensor
    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class DecoderWeights:
    """Weights of a Qwen3 body, wherever they are.

    Attributes:
        embedding: shape ``[vocabulary, hidden]``.
        layers: in order.
        norm: the last one.
        frequencies: of the rotary embedding, float32, shape ``[head size / 2]``.
        epsilon: of all norms.
        heads: of queries.
        kv_heads: of keys and values.
    """

    embedding: torch.Tensor
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor
    frequencies: torch.Tensor
    epsilon: float
    heads: int
    kv_heads: int

    @classmethod
    def of_body(cls, body: Any) -> DecoderWeights:
        """Those of a body of ``transformers``."""
        layers = tuple(
            LayerWeights(
                input_norm=layer.input_layernorm.weight,
                query=layer.self_attn.q_proj.weight,
                key=layer.self_attn.k_proj.weight,
                value=layer.self_attn.v_proj.weight,
                query_norm=layer.self_attn.q_norm.weight,
                key_norm=layer.self_attn.k_norm.weight,
                output=layer.self_attn.o_proj.weight,
                inner_norm=layer.post_attention_layernorm.weight,
                gate=layer.mlp.gate_proj.weight,
                up=layer.mlp.up_proj.weight,
                down=layer.mlp.down_proj.weight,
            )
            for layer in body.layers
        )
        return cls(
            embedding=body.embed_tokens.weight,
            layers=layers,
            norm=body.norm.weight,
            frequencies=body.rotary_emb.inv_freq,
            epsilon=body.norm.variance_epsilon,
            heads=body.config.num_attention_heads,
            kv_heads=body.config.num_key_value_heads,
        )

    @property
    def head_dim(self) -> int:
        """Size of a head."""
        return len(self.layers[0].query_norm)


@dataclass(frozen=True, slots=True, eq=False)
class CacheAddresses:
    """Where keys and values of each row are.

    Attributes:
        keys: one buffer per layer.
        values: the same.
        rows: the number of slots of every row, int64, shape ``[]``; or with pages, which of them each row has, int32,
            shape ``[rows, pages]``.
        page: slots of a page; 0 where the slots of a row are consecutive.
        page_stride: elements from one page to the next.
        slot_stride: elements from one slot to the next.
        head_stride: elements from one head to the next.
    """

    keys: Sequence[torch.Tensor]
    values: Sequence[torch.Tensor]
    rows: torch.Tensor
    slot_stride: int
    head_stride: int
    page: int = 0
    page_stride: int = 0


class FusedLayers:
    """The layers' launches for a few tokens, one per lane, with the memory that they share.

    Args:
        weights: of the model.
    """

    def __init__(self, weights: DecoderWeights) -> None:
        from acestep.planner.backends.pt import kernels

        self._kernels: Any = kernels
        self._weights = weights
        embedding = weights.embedding
        # Every layer uses the same memory. Hidden states, and what the norm after them starts from:
        width = embedding.shape[1]
        self._share = fitting(OUTPUT_TILE, width, width)["N_BLOCK"]
        self._hidden, self._scaled = (self._lanes(width, embedding.dtype) for _ in range(2))
        self._squares = self._lanes(width // self._share, torch.float32)
        # Attention's shares of one lane, head and program; PyTorch's default dtype may be another where they are made.
        shares = (kernels.LANE_LIMIT, weights.heads, ATTENTION_TILE["SPLITS"])
        self._mixed = embedding.new_empty(*shares, weights.head_dim, dtype=torch.float32)
        self._maxima, self._sums = (embedding.new_empty(shares, dtype=torch.float32) for _ in range(2))
        # Back at zero after every launch.
        self._arrivals = torch.zeros(kernels.LANE_LIMIT, weights.kv_heads, dtype=torch.int32, device=embedding.device)

    @property
    def lane_limit(self) -> int:
        """Most tokens of a pass."""
        return int(self._kernels.LANE_LIMIT)

    def __call__(self, ids: torch.Tensor, places: torch.Tensor, cache: CacheAddresses, tokens: int) -> torch.Tensor:
        """Run tokens after those of the cache, which gets their keys and values.

        Args:
            ids: shape ``[lanes]``, ``tokens`` of each row.
            places: of the tokens in their rows, the same shape; negative where a lane is to be skipped.
            cache: of the rows.
            tokens: of each row.

        Returns:
            Hidden states after the last norm, shape ``[lanes, hidden]``.
        """
        weights, layers = self._weights, self._weights.layers
        next_norms = [*(layer.input_norm for layer in layers[1:]), weights.norm]
        self._embed(ids, layers[0].input_norm)
        for index, (layer, next_norm) in enumerate(zip(layers, next_norms, strict=True)):
            self._attend(layer, index, places, cache, tokens)
            self._feed_forward(layer, len(places), next_norm)
        hidden = self._hidden[: len(places)]
        return functional.rms_norm(hidden, weights.norm.shape, weights.norm, weights.epsilon)

    def _embed(self, ids: torch.Tensor, next_norm: torch.Tensor) -> None:
        width = self._hidden.shape[1]
        self._kernels.embed[(width // self._share,)](
            ids,
            self._weights.embedding,
            next_norm,
            self._hidden,
            self._scaled,
            self._squares,
            len(ids),
            N=width,
            N_BLOCK=self._share,
            num_warps=1,
        )

    def _attend(
        self, layer: LayerWeights, index: int, places: torch.Tensor, cache: CacheAddresses, tokens: int
    ) -> None:
        """The attention half of a layer: adds to the hidden states."""
        kernels, weights, lanes = self._kernels, self._weights, len(places)
        q_size, kv_size = len(layer.query), len(layer.key)
        qkv = self._hidden.new_empty(lanes, q_size + 2 * kv_size)
        tile = fitting(INPUT_TILE, kv_size, self._hidden.shape[1])
        kernels.project_inputs[(qkv.shape[1] // tile["N_BLOCK"],)](
            self._scaled,
            self._squares,
            layer.query,
            layer.key,
            layer.value,
            qkv,
            lanes,
            weights.epsilon,
            Q=q_size,
            KV=kv_size,
            **self._norm_sizes(),
            **tile,
        )
        attended = self._hidden.new_empty(lanes, q_size)
        kernels.attend[(lanes, weights.kv_heads, ATTENTION_TILE["SPLITS"])](
            qkv,
            layer.query_norm,
            layer.key_norm,
            weights.frequencies,
            places,
            cache.keys[index],
            cache.values[index],
            cache.rows,
            cache.rows.stride(0) if cache.page else 0,
            self._mixed,
            self._maxima,
            self._sums,
            self._arrivals,
            attended,
            weights.epsilon,
            weights.head_dim**-0.5,
            TOKENS=tokens,
            HEADS=weights.heads,
            KV_HEADS=weights.kv_heads,
            HALF=weights.head_dim // 2,
            PAGE=cache.page,
            PAGE_STRIDE=cache.page_stride,
            SLOT_STRIDE=cache.slot_stride,
            HEAD_STRIDE=cache.head_stride,
            **ATTENTION_TILE,
        )
        self._project_onto(attended, layer.output, layer.inner_norm)

    def _feed_forward(self, layer: LayerWeights, lanes: int, next_norm: torch.Tensor) -> None:
        """The other half: adds to the hidden states."""
        inner, width = layer.gate.shape
        activated = self._hidden.new_empty(lanes, inner)
        tile = fitting(GATE_TILE, inner, width)
        self._kernels.gate[(inner // tile["N_BLOCK"],)](
            self._scaled,
            self._squares,
            layer.gate,
            layer.up,
            activated,
            lanes,
            self._weights.epsilon,
            N=inner,
            **self._norm_sizes(),
            **tile,
        )
        self._project_onto(activated, layer.down, next_norm)

    def _project_onto(self, lanes: torch.Tensor, weight: torch.Tensor, next_norm: torch.Tensor) -> None:
        n, k = weight.shape
        self._kernels.project_onto[(n // self._share,)](
            lanes,
            weight,
            next_norm,
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
        return torch.empty(self._kernels.LANE_LIMIT, width, device=self._weights.embedding.device, dtype=dtype)


class FusedForward:
    """The body's forward pass for a few tokens over all rows.

    On CUDA each shape is recorded as a graph when it first occurs. Graphs contain the addresses of weights and cache:
    if either is replaced, a new instance is needed.

    Args:
        model: the language model.
        cache: of the rows.
    """

    def __init__(self, model: LanguageModel, cache: CacheAddresses) -> None:
        self._layers = FusedLayers(DecoderWeights.of_body(model.body))
        self._cache = cache
        self._passes: dict[tuple[int, int], TensorFunction] = {}

    def fits(self, rows: int, tokens: int) -> bool:
        """Whether a pass over ``tokens`` tokens in each row is small enough."""
        return rows * _padded(tokens) <= self._layers.lane_limit

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
        return self._layers(ids.flatten(), places.flatten(), self._cache, tokens).view(rows, tokens, -1)


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
