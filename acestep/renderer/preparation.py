"""From loaded weights to models that are ready to run: folded, quantised, compiled and placed."""

from __future__ import annotations

import math
import warnings
from typing import Any, Final

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import nn
from torchao.quantization import (
    Float8WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    PerGroup,
    quantize_,
)

from acestep.offloading import ModelOffloader
from acestep.renderer.fused_decoder import knows, lay_out
from acestep.renderer.models import AudioEncoderModels, RendererModels
from acestep.types import Quantization


class NativeAttention:
    """Attention processor of diffusers' ``AceStepAttention``: always ``scaled_dot_product_attention``.

    diffusers' own processor creates an enumeration member in every call to select the kernel, which PyTorch 2.11 cannot
    trace into one graph.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Attend over the conditions if there are any, otherwise over the sequence itself.

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


BACKEND: Final = "inductor"
GRAPHS_PER_BLOCK: Final = 64
"""Maximum number of graphs of a block's code in one process: each form of weights, kind of layer, single song and batch
has its own, and PyTorch's limit of eight would end a long benchmark with an error."""


_DECODER_OPTIONS: Final = {"layout_optimization": False}
"""Keeps convolutions in their layout: as fast as in the other one, and compiled in half the time."""


def compile_models(models: RendererModels, backend: str = BACKEND) -> None:
    """Let the transformer's blocks and the VAE's decoder be compiled when they first run.

    A block is one graph for any length and batch; all blocks of a kind share it. Nothing is traced or timed inside.

    Args:
        models: compiled in place.
        backend: of ``torch.compile``.
    """
    # For the process: only newer PyTorch takes the limit as an argument of compile().
    torch._dynamo.config.recompile_limit = max(GRAPHS_PER_BLOCK, torch._dynamo.config.recompile_limit)
    for block in models.transformer.layers:
        for attention in (block.self_attn, block.cross_attn):
            attention.set_processor(NativeAttention())
        block.compile(fullgraph=True, dynamic=True, backend=backend)
    # Options are Inductor's alone.
    options = {"options": _DECODER_OPTIONS} if backend == BACKEND else {}
    models.vae.decoder.compile(fullgraph=True, dynamic=True, backend=backend, **options)


GROUP_SIZE: Final = 128
"""Weights that share a scale where only weights are in int8. With one scale per row, PyTorch's compiler generates the
product ``_weight_int8pack_mm``, which is meant for a single token and takes hundreds of times as long for a song."""


def quantize(transformer: Any, form: Quantization, device: torch.device) -> None:
    """Quantise the linear layers of the transformer's blocks in place; they hold 96 % of its weights.

    One block after the other goes to the device and comes back, so that the device never holds the whole transformer
    in its own dtype. The embeddings of the timestep and the conditions stay unchanged: they are outside the compiled
    blocks.

    Args:
        transformer: ``diffusers.AceStepTransformer1DModel`` on any device.
        form: of the weights (and of the activations, for ``w8a8_dynamic``).
        device: where the models run.
    """
    for block in transformer.layers:
        home = next(block.parameters()).device
        quantize_(nn.Module.to(block, device), _config(form, block))
        nn.Module.to(block, home)


def _config(form: Quantization, block: nn.Module) -> Any:
    """What torchao does; by default it would also change process-wide settings of the compiler."""
    if form == "fp8_weight_only":
        return Float8WeightOnlyConfig(set_inductor_config=False)
    if form == "w8a8_dynamic":
        return Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    widths = (layer.in_features for layer in block.modules() if isinstance(layer, nn.Linear))
    return Int8WeightOnlyConfig(granularity=PerGroup(math.gcd(GROUP_SIZE, *widths)), set_inductor_config=False)


MODEL_NAMES: Final = (
    "transformer",
    "condition_encoder",
    "audio_tokenizer",
    "audio_token_detokenizer",
    "vae",
    "text_encoder",
)
"""Modules of ``RendererModels``, by field."""


def prepare(models: RendererModels, offloader: ModelOffloader) -> None:
    """Convert models to the form in which they run, and move them to their device; all of it in place.

    Args:
        models: freshly loaded, on the host or on the device.
        offloader: decides where they are between uses.
    """
    placement = offloader.placement
    fold_weight_norm(models.vae)
    if offloader.device.type == "cuda" and knows(models.vae.decoder):
        # Before a VAE that is offloaded gets its copy in host memory; PyTorch's own convolutions take either order.
        lay_out(models.vae.decoder)
    if placement.quantization is not None:
        quantize(models.transformer, placement.quantization, models.device)
    if placement.compile:
        compile_models(models)
    for name in MODEL_NAMES:
        offloader.place(name, getattr(models, name))


def prepare_audio_encoder(models: AudioEncoderModels, offloader: ModelOffloader) -> None:
    """The same for an audio encoder: it is small, so it is neither quantised nor compiled."""
    fold_weight_norm(models.vae)
    for name in ("vae", "audio_tokenizer"):
        offloader.place(name, getattr(models, name))


def fold_weight_norm(vae: Any) -> None:
    """Compute the VAE's normalised kernels once: every tile would compute them again, and both forms take memory."""
    for module in vae.modules():
        if "weight_g" in getattr(module, "_parameters", {}):
            with warnings.catch_warnings():
                # The form of weight norm that the checkpoints have, which torch has deprecated.
                warnings.simplefilter("ignore", FutureWarning)
                nn.utils.remove_weight_norm(module)
            module.requires_grad_(False)
