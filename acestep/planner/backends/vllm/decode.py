"""Small decode passes of vLLM's model in the engine's own kernels, on vLLM's weights and cache.

A pass of vLLM launches 13 kernels per layer, and with a few rows launching and waiting take longer than reading the
weights. The kernels of the PyTorch backend take five. Prompts, and passes of more rows than the kernels have lanes, run
in vLLM's model.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from acestep.planner.backends.pt.fused import (
    ATTENTION_TILE,
    CacheAddresses,
    DecoderWeights,
    FusedLayers,
    LayerWeights,
    can_run,
    knows,
)

logger = logging.getLogger(__name__)


class PagedDecode:
    """Decode passes over the pages of vLLM's cache.

    Args:
        model: ``Qwen3ForCausalLM`` with its weights.
    """

    def __init__(self, model: Any) -> None:
        self._attentions = [layer.self_attn.attn for layer in model.model.layers]
        self._weights = decoder_weights(model)
        self._layers = FusedLayers(self._weights)

    @classmethod
    def of(cls, model: Any) -> PagedDecode | None:
        """For a model whose weights are loaded; ``None`` where the kernels do not run, or do not know the model."""
        weight, page = model.model.embed_tokens.weight, model.vllm_config.cache_config.block_size
        runs = can_run(weight.device, weight.dtype) and knows(model.config)
        # Other kinds of attention lay the cache out in other ways.
        backend = model.model.layers[0].self_attn.attn.attn_backend
        if not (runs and backend.get_name() == "FLASH_ATTN" and page % ATTENTION_TILE["KEY_BLOCK"] == 0):
            return None
        try:
            decode = cls(model)
            decode._try(page)
        except torch.OutOfMemoryError:
            raise
        # Whatever else a compiler or driver raises: vLLM's own model still works.
        except Exception as error:
            logger.warning(
                "vLLM decodes without the engine's kernels, more slowly: %s: %s", type(error).__name__, error
            )
            return None
        return decode

    def _try(self, page: int) -> None:
        """Build and launch the kernels, on one page that serves all layers."""
        weights = self._weights
        shape = (1, weights.kv_heads, page, 2 * weights.head_dim)
        scratch = [weights.embedding.new_zeros(shape)] * len(weights.layers)
        ids = torch.zeros(1, dtype=torch.int32, device=weights.embedding.device)
        self._run(ids, ids + 1, ids.view(1, 1), scratch)
        torch.accelerator.synchronize(weights.embedding.device)

    @property
    def layer_name(self) -> str:
        """By which vLLM names the metadata of attention; it is the same for all layers."""
        return str(self._attentions[0].layer_name)

    def takes(self, tokens: int) -> bool:
        """Whether a pass with one token in each row is small enough."""
        return tokens <= self._layers.lane_limit

    def __call__(self, ids: torch.Tensor, lengths: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
        """Run the last token of each row.

        Args:
            ids: shape ``[rows]``.
            lengths: of the rows, this token included, shape ``[rows]``; 0 where a row is to be skipped.
            pages: of the rows in the cache, int32, shape ``[rows, most pages]``.

        Returns:
            Hidden states after the last norm, shape ``[rows, hidden]``.
        """
        return self._run(ids, lengths, pages, [attention.kv_cache for attention in self._attentions])

    def _run(
        self, ids: torch.Tensor, lengths: torch.Tensor, pages: torch.Tensor, caches: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """The same; caches have shape ``[pages, key-value heads, slots, 2 * head size]``, laid out in any order."""
        size = self._weights.head_dim
        page_stride, head_stride, slot_stride, _ = caches[0].stride()
        cache = CacheAddresses(
            keys=[cache[..., :size] for cache in caches],
            values=[cache[..., size:] for cache in caches],
            rows=pages,
            page=caches[0].shape[2],
            page_stride=page_stride,
            slot_stride=slot_stride,
            head_stride=head_stride,
        )
        return self._layers(ids, lengths - 1, cache, 1)


def decoder_weights(model: Any) -> DecoderWeights:
    """The weights of ``Qwen3ForCausalLM``: projections that have the same input are one matrix there."""
    config = model.config
    q_size, kv_size = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    layers = []
    for layer in model.model.layers:
        query, key, value = layer.self_attn.qkv_proj.weight.detach().split([q_size, kv_size, kv_size])
        gate, up = layer.mlp.gate_up_proj.weight.detach().chunk(2)
        layers.append(
            LayerWeights(
                input_norm=layer.input_layernorm.weight.detach(),
                query=query,
                key=key,
                value=value,
                query_norm=layer.self_attn.q_norm.weight.detach(),
                key_norm=layer.self_attn.k_norm.weight.detach(),
                output=layer.self_attn.o_proj.weight.detach(),
                inner_norm=layer.post_attention_layernorm.weight.detach(),
                gate=gate,
                up=up,
                down=layer.mlp.down_proj.weight.detach(),
            )
        )
    embedding = model.model.embed_tokens.weight.detach()
    # As in transformers (`ROPE_INIT_FUNCTIONS["default"]`); vLLM keeps only sines and cosines, in the model's dtype.
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=embedding.device) / config.head_dim
    return DecoderWeights(
        embedding=embedding,
        layers=tuple(layers),
        norm=model.model.norm.weight.detach(),
        frequencies=1.0 / config.rope_parameters["rope_theta"] ** exponents,
        epsilon=config.rms_norm_eps,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
    )
