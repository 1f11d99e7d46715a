"""Names of the official checkpoints' tensors, from the names that diffusers' modules give them.

The official file holds four models under prefixes; diffusers has a module for each and calls the projections of its
attention layers otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

PREFIXES: Final[Mapping[str, str]] = {
    "transformer": "decoder.",
    "condition_encoder": "encoder.",
    "audio_tokenizer": "tokenizer.",
    "audio_token_detokenizer": "detokenizer.",
}
"""Prefix in the official file, by the module's name in ``RendererModels`` (and folder in a diffusers repository)."""
NULL_CONDITION: Final = "null_condition_emb"
"""Belongs to diffusers' condition encoder, and stands beside the four models in the official file."""
SILENCE: Final = "silence_latent"
"""Belongs to diffusers' condition encoder, and has a file of its own in the official layout."""
_ATTENTION: Final[Mapping[str, str]] = {
    "to_q": "q_proj",
    "to_k": "k_proj",
    "to_v": "v_proj",
    "to_out.0": "o_proj",
    "norm_q": "q_norm",
    "norm_k": "k_norm",
}
_PATCHES: Final[Mapping[str, str]] = {"proj_in_conv": "proj_in.1", "proj_out_conv": "proj_out.1"}


def official_name(role: str, name: str) -> str | None:
    """The official name of a tensor; ``None`` for the silence latent.

    Args:
        role: a key of ``PREFIXES``.
        name: of the tensor in that module of diffusers.
    """
    if role == "condition_encoder" and name in (NULL_CONDITION, SILENCE):
        return name if name == NULL_CONDITION else None
    module, _, leaf = name.rpartition(".")
    for ours, theirs in _ATTENTION.items():
        if module.endswith(f"attn.{ours}"):
            module = module.removesuffix(ours) + theirs
    module = _PATCHES.get(module, module)
    return PREFIXES[role] + (f"{module}.{leaf}" if module else leaf)
