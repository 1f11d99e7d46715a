"""The diffusion transformer's forward pass in few launches, on the weights of diffusers' model.

What stays the same over the steps (keys and values of the conditions, positions, the embedding of the second time) is
computed once per request. Three Triton kernels run between the matrix products, and sliding attention reads the
keys of its window instead of a mask. Nothing is compiled beyond these kernels, so any length and batch starts at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

from acestep.renderer.conditioning import Conditions

_CAPABILITY: Final = (8, 0)
"""Oldest compute capability with bfloat16 arithmetic and the attention kernel that has a window."""
_PIECE: Final = 1024
"""Elements of one program where rows do not matter."""

_Modulation = tuple[torch.Tensor, torch.Tensor]
"""Parameters of a block and of the timestep, which are added."""


def can_fuse(transformer: Any) -> bool:
    """Whether the kernels can run where the transformer is, in its dtype, at its sizes."""
    weight = transformer.proj_in_conv.weight
    return (
        weight.is_cuda
        and weight.dtype == torch.bfloat16
        and torch.cuda.get_device_capability(weight.device) >= _CAPABILITY
        and find_spec("triton") is not None
        and knows(transformer)
    )


def knows(transformer: Any) -> bool:
    """Whether the kernels compute what this architecture does: plain weights, and heads of a power of two."""
    plain = all(
        type(layer.weight) is nn.Parameter
        for block in transformer.layers
        for layer in block.modules()
        if isinstance(layer, nn.Linear)
    )
    return bool(plain and transformer.config.head_dim >= 32 and transformer.config.head_dim.bit_count() == 1)


class FusedTransformer:
    """Velocity of diffusers' ``AceStepTransformer1DModel``.

    Args:
        transformer: the model, whose weights are read where they are.
    """

    def __init__(self, transformer: Any) -> None:
        from acestep.renderer import kernels

        self._kernels: Any = kernels
        self._model = transformer
        self._head_dim: int = transformer.config.head_dim

    def prepare(self, conditions: Conditions) -> tuple[torch.Tensor, ...]:
        """Compute what a request's steps share.

        Args:
            conditions: of the rows of a step.

        Returns:
            Context latents, shape ``[rows, frames, 2 * channels]``. Keys and values of the conditions for all blocks,
            each of shape ``[blocks, rows, tokens, heads, head_dim]``; one row where all rows have the same.
            The embedding of the second time, which is always 0: shapes ``[1, hidden]`` and ``[1, 6, hidden]``.
            Cosines and sines of the positions, float32, each of shape ``[patches, head_dim / 2]``.
        """
        model = self._model
        context, states = (
            tensor[:1] if tensor.stride(0) == 0 else tensor
            for tensor in (conditions.context_latents, conditions.encoder_hidden_states)
        )
        embedded_states = model.condition_embedder(states)
        keys, values = zip(
            *(self._keys_and_values(block.cross_attn, embedded_states) for block in model.layers), strict=True
        )
        zero_time = model.time_embed_r(embedded_states.new_zeros(1))
        return context, torch.stack(keys), torch.stack(values), *zero_time, *self._rotary_table(context)

    def _keys_and_values(self, attention: Any, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values: torch.Tensor = attention.to_v(states)
        return self._heads(attention.to_k(states), attention.norm_k), values.view(
            *values.shape[:-1], -1, self._head_dim
        )

    def __call__(self, latents: torch.Tensor, times: torch.Tensor, *prepared: torch.Tensor) -> torch.Tensor:
        """The velocity.

        Args:
            latents: float32, shape ``[rows, frames, channels]``.
            times: t of all rows, model dtype, shape ``[1]``.
            prepared: see ``prepare``.

        Returns:
            float32, the shape of ``latents``.
        """
        model, rows = self._model, latents.shape[0]
        context, keys, values, zero_embedding, zero_modulation, *rotary = prepared
        embedding, modulation = model.time_embed(times)
        embedding, modulation = (embedding + zero_embedding)[0], (modulation + zero_modulation)[0]
        hidden = self._patches(latents, context.expand(rows, -1, -1))
        added, last_gate = None, None
        for index, block in enumerate(model.layers):
            # One row per purpose: shift, scale and gate of self-attention, then of the feed-forward layer.
            own = list(zip(block.scale_shift_table[0], modulation, strict=True))
            # The last product of a block is added, scaled by the block's gate, in the norm after it.
            normed = self._norm(block.self_attn_norm, hidden, added, last_gate, (own[0], own[1]))
            mixed = self._attend_itself(block.self_attn, normed, rotary)
            normed = self._norm(block.cross_attn_norm, hidden, mixed, own[2])
            conditions = (tensor[index].expand(rows, -1, -1, -1) for tensor in (keys, values))
            crossed = self._attend_conditions(block.cross_attn, normed, *conditions)
            normed = self._norm(block.mlp_norm, hidden, crossed, None, (own[3], own[4]))
            added, last_gate = self._feed_forward(block.mlp, normed), own[5]
        shift, scale = ((own, embedding) for own in model.scale_shift_table[0])
        return self._frames(self._norm(model.norm_out, hidden, added, last_gate, (shift, scale)), latents.shape[1])

    def _patches(self, latents: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Hidden states of the patches, shape ``[rows, patches, hidden]``: a convolution whose steps do not overlap."""
        projection, size = self._model.proj_in_conv, self._model.patch_size
        whole = torch.cat([context, latents.to(context.dtype)], dim=-1)
        whole = functional.pad(whole, (0, 0, 0, -whole.shape[1] % size))
        patches = whole.view(len(whole), -1, size, whole.shape[-1]).transpose(2, 3).flatten(2)
        hidden: torch.Tensor = functional.linear(patches, projection.weight.flatten(1), projection.bias)
        return hidden

    def _frames(self, hidden: torch.Tensor, frames: int) -> torch.Tensor:
        """The way back from patches to frames, float32."""
        projection, size = self._model.proj_out_conv, self._model.patch_size
        patches: torch.Tensor = hidden @ projection.weight.flatten(1)
        samples = patches.view(*patches.shape[:2], -1, size).transpose(2, 3).flatten(1, 2)
        velocity: torch.Tensor = (samples[:, :frames] + projection.bias).float()
        return velocity

    def _norm(
        self,
        norm: Any,
        hidden: torch.Tensor,
        added: torch.Tensor | None = None,
        gate: _Modulation | None = None,
        shift_and_scale: tuple[_Modulation, _Modulation] | None = None,
    ) -> torch.Tensor:
        """Add to the hidden states in place, by a gate where there is one, and normalise the sum."""
        out, width = torch.empty_like(hidden), hidden.shape[-1]
        # A pointer that is not read has to be some tensor.
        unused = (norm.weight, norm.weight)
        shift, scale = shift_and_scale or (unused, unused)
        self._kernels.modulated_norm[(hidden.shape[:-1].numel(),)](
            hidden,
            hidden if added is None else added,
            *(gate or unused),
            norm.weight,
            *shift,
            *scale,
            out,
            norm.eps,
            N=width,
            N_BLOCK=1 << (width - 1).bit_length(),
            ADDS=added is not None,
            GATES=gate is not None,
            MODULATES=shift_and_scale is not None,
            num_warps=8,
        )
        return out

    def _attend_itself(self, attention: Any, normed: torch.Tensor, rotary: Sequence[torch.Tensor]) -> torch.Tensor:
        query = self._heads(attention.to_q(normed), attention.norm_q, rotary)
        key = self._heads(attention.to_k(normed), attention.norm_k, rotary)
        value = attention.to_v(normed).view(*key.shape)
        window = attention.sliding_window
        if window is not None and window + 1 < query.shape[1] and query.is_cuda:
            mixed = windowed_attention(query, key, value, attention.scaling, window)
        else:
            mixed = _attention(query, key, value, attention.scaling, window)
        projected: torch.Tensor = attention.to_out[0](mixed.flatten(2))
        return projected

    def _heads(self, projected: torch.Tensor, norm: Any, rotary: Sequence[torch.Tensor] = ()) -> torch.Tensor:
        """Heads after their norm, and the rotary embedding where there is one, ``[rows, tokens, heads, head_dim]``."""
        heads = projected.shape[-1] // self._head_dim
        # A pointer that is not read has to be some tensor.
        cosines, sines = rotary or (norm.weight, norm.weight)
        self._kernels.norm_heads[(projected.shape[:-1].numel(),)](
            projected,
            norm.weight,
            cosines,
            sines,
            projected.shape[1],
            norm.eps,
            HEADS=heads,
            HEADS_BLOCK=1 << (heads - 1).bit_length(),
            HALF=self._head_dim // 2,
            ROTATES=bool(rotary),
            num_warps=4,
        )
        return projected.view(*projected.shape[:-1], heads, self._head_dim)

    def _rotary_table(self, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        patches, size = -(-context.shape[1] // self._model.patch_size), self._head_dim
        exponents = torch.arange(0, size, 2, device=context.device, dtype=torch.float32) / size
        places = torch.arange(patches, device=context.device, dtype=torch.float32)
        angles = places[:, None] / self._model.rope_theta**exponents
        return angles.cos(), angles.sin()

    def _attend_conditions(
        self, attention: Any, normed: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        query = self._heads(attention.to_q(normed), attention.norm_q)
        projected: torch.Tensor = attention.to_out[0](_attention(query, keys, values, attention.scaling).flatten(2))
        return projected

    def _feed_forward(self, mlp: Any, normed: torch.Tensor) -> torch.Tensor:
        gate, up = mlp.gate_proj(normed), mlp.up_proj(normed)
        out = torch.empty_like(gate)
        self._kernels.gated[(-(-out.numel() // _PIECE),)](gate, up, out, out.numel(), BLOCK=_PIECE, num_warps=4)
        projected: torch.Tensor = mlp.down_proj(out)
        return projected


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int | None = None
) -> torch.Tensor:
    """Attention over everything, or over a window by a mask; shapes ``[rows, length, heads, head_dim]``."""
    mask = None
    if window is not None:
        place = torch.arange(query.shape[1], device=query.device)
        mask = (place[:, None] - place[None, :]).abs() <= window
    mixed = functional.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=mask,
        scale=scale,
        enable_gqa=query.shape[2] != key.shape[2],
    )
    return mixed.transpose(1, 2)


def windowed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int
) -> torch.Tensor:
    """Attention over a window on each side, on CUDA: the keys outside are not read.

    PyTorch's flash attention (Dao 2023) has the window; its public function supports it only for packed sequences, and
    with fewer key heads than query heads only from 2.13 on.
    """
    mixed: torch.Tensor
    mixed, *_ = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        None,
        None,
        query.shape[1],
        key.shape[1],
        0.0,
        False,
        False,
        scale=scale,
        window_size_left=window,
        window_size_right=window,
    )
    return mixed
