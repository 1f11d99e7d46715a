"""Attention as PyTorch has it, without a choice of kernels to look up inside compiled code."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb


class NativeAttention:
    """Attention processor of diffusers' ``AceStepAttention``: always ``scaled_dot_product_attention``.

    diffusers' own processor makes an enumeration member in every call to learn which kernel is wanted, which PyTorch
    2.11 cannot trace into one graph.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Attend over the conditions where there are some to attend to, else over the sequence itself.

        Args:
            attn: the layer: projections, norms and sizes.
            hidden_states: shape ``[batch, length, hidden]``.
            encoder_hidden_states: conditions, shape ``[batch, tokens, hidden]``.
            attention_mask: added to the scores, broadcastable to ``[batch, heads, length, length]``.
            image_rotary_emb: cosines and sines of the positions, of self-attention only.

        Returns:
            The shape of ``hidden_states``.
        """
        crosses = attn.is_cross_attention and encoder_hidden_states is not None
        attended = encoder_hidden_states if crosses else hidden_states
        query = attn.norm_q(attn.to_q(hidden_states).unflatten(-1, (attn.heads, attn.head_dim)))
        key = attn.norm_k(attn.to_k(attended).unflatten(-1, (attn.kv_heads, attn.head_dim)))
        value = attn.to_v(attended).unflatten(-1, (attn.kv_heads, attn.head_dim))
        if image_rotary_emb is not None and not crosses:
            query, key = (
                apply_rotary_emb(heads, image_rotary_emb, use_real=True, use_real_unbind_dim=-2, sequence_dim=1)
                for heads in (query, key)
            )
        mixed = torch.nn.functional.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=attention_mask,
            scale=attn.scaling,
            enable_gqa=attn.heads != attn.kv_heads,
        )
        output_projection = attn.to_out[0]
        projected: torch.Tensor = output_projection(mixed.transpose(1, 2).flatten(2, 3))
        return projected
