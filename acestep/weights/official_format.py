"""The official checkpoint format: its configuration as arguments of diffusers' modules, and its tensors' names.

The official file contains four models under prefixes; diffusers has a module for each and names the projections of its
attention layers differently.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

_ATTENTION: Final = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "attention_bias",
    "attention_dropout",
    "rms_norm_eps",
    "sliding_window",
)
"""Settings that all transformers in the checkpoint have in common."""
ENCODER_SIZES: Final = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
"""Sizes that the XL models set separately for their encoders, as ``encoder_<size>``."""
_TRANSFORMER: Final = (
    "num_hidden_layers", "in_channels", "audio_acoustic_hidden_dim", "patch_size", "layer_types", "model_version",
)  # fmt: skip
_CONDITION: Final = (
    "text_hidden_dim",
    "timbre_hidden_dim",
    "num_lyric_encoder_hidden_layers",
    "num_timbre_encoder_hidden_layers",
)
_DETOKENIZER: Final = ("audio_acoustic_hidden_dim", "pool_window_size", "num_attention_pooler_hidden_layers")
_TOKENIZER: Final = (*_DETOKENIZER, "fsq_dim", "fsq_input_levels", "fsq_input_num_quantizers")


def is_turbo(config: Mapping[str, Any]) -> bool:
    """Whether guidance is distilled into the weights."""
    return bool(config.get("is_turbo")) or config.get("model_version") == "turbo"


def module_arguments(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Arguments of the four modules that one official configuration describes, by their name in ``RendererModels``.

    Args:
        config: the official ``config.json``. Missing values have the modules' defaults, which are
            those of the released models.
    """
    rotary = config.get("rope_parameters") or {}
    theta = config.get("rope_theta", rotary.get("rope_theta"))
    shared = _picked(config, _ATTENTION) | ({} if theta is None else {"rope_theta": theta})
    encoder = shared | {size: config[f"encoder_{size}"] for size in ENCODER_SIZES if config.get(f"encoder_{size}")}
    return {
        "transformer": shared
        | _picked(config, _TRANSFORMER)
        | {"encoder_hidden_size": encoder.get("hidden_size"), "is_turbo": is_turbo(config)},
        "condition_encoder": encoder
        | _picked(config, _CONDITION)
        | _first_layers(config, "num_lyric_encoder_hidden_layers"),
        "audio_tokenizer": encoder
        | _picked(config, _TOKENIZER)
        | _first_layers(config, "num_attention_pooler_hidden_layers"),
        "audio_token_detokenizer": encoder
        | _picked(config, _DETOKENIZER)
        | _first_layers(config, "num_attention_pooler_hidden_layers"),
    }


def _picked(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: config[name] for name in names if config.get(name) is not None}


def _first_layers(config: Mapping[str, Any], count: str) -> dict[str, Any]:
    """Kinds of a small encoder's layers: the transformer's list is cut to their number."""
    kinds, layers = config.get("layer_types"), config.get(count)
    if kinds is None or layers is None or len(kinds) < layers:
        return {}
    return {"layer_types": list(kinds[:layers])}


PREFIXES: Final[Mapping[str, str]] = {
    "transformer": "decoder.",
    "condition_encoder": "encoder.",
    "audio_tokenizer": "tokenizer.",
    "audio_token_detokenizer": "detokenizer.",
}
"""Prefix in the official file, by the module's name in ``RendererModels`` (and folder in a diffusers repository)."""
NULL_CONDITION: Final = "null_condition_emb"
"""Belongs to diffusers' condition encoder, and is stored beside the four models in the official file."""
SILENCE: Final = "silence_latent"
"""Belongs to diffusers' condition encoder, and has a separate file in the official layout."""
ATTENTION_NAMES: Final[Mapping[str, str]] = {
    "to_q": "q_proj",
    "to_k": "k_proj",
    "to_v": "v_proj",
    "to_out.0": "o_proj",
    "norm_q": "q_norm",
    "norm_k": "k_norm",
}
"""Names in diffusers' attention layers, and in official files."""
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
    for ours, theirs in ATTENTION_NAMES.items():
        if module.endswith(f"attn.{ours}"):
            module = module.removesuffix(ours) + theirs
    module = _PATCHES.get(module, module)
    return PREFIXES[role] + (f"{module}.{leaf}" if module else leaf)
