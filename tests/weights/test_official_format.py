"""Official tensor names and diffusers' are two spellings of the same tensors, none lost and none shared."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from acestep.synthetic.renderer import RENDERER_CONFIGS, diffusers_modules
from acestep.weights.official_format import PREFIXES, SILENCE, official_name
from acestep.weights.renderer import official_modules
from tests.weights.miniature import GOLDEN_CHECKPOINTS


def official_names(modules) -> list[str]:
    names = [official_name(role, name) for role in PREFIXES for name in modules[role].state_dict()]
    return [name for name in names if name is not None]


@pytest.mark.parametrize("variant", ["acestep-v15-turbo", "acestep-v15-base"])
def test_the_names_are_exactly_those_of_an_official_file(variant):
    folder = GOLDEN_CHECKPOINTS / variant
    names = official_names(official_modules(folder))
    assert len(names) == len(set(names))
    assert set(names) == set(load_file(folder / "model.safetensors"))


@pytest.mark.parametrize("name", ["acestep-v15-turbo", "acestep-v15-xl-base"])
def test_every_tensor_of_the_true_architectures_has_a_unique_name(name):
    modules = diffusers_modules(RENDERER_CONFIGS[name])
    names = official_names(modules)
    assert len(names) == len(set(names))
    parameters = sum(len(list(modules[role].parameters())) for role in PREFIXES)
    assert len(names) == parameters


@pytest.mark.parametrize(
    ("role", "name", "official"),
    [
        ("transformer", "proj_in_conv.weight", "decoder.proj_in.1.weight"),
        ("transformer", "layers.3.cross_attn.to_out.0.weight", "decoder.layers.3.cross_attn.o_proj.weight"),
        ("transformer", "layers.3.self_attn.norm_q.weight", "decoder.layers.3.self_attn.q_norm.weight"),
        ("transformer", "layers.3.self_attn_norm.weight", "decoder.layers.3.self_attn_norm.weight"),
        ("transformer", "scale_shift_table", "decoder.scale_shift_table"),
        ("condition_encoder", "null_condition_emb", "null_condition_emb"),
        ("audio_tokenizer", "quantizer.project_in.bias", "tokenizer.quantizer.project_in.bias"),
        ("audio_token_detokenizer", "proj_out.weight", "detokenizer.proj_out.weight"),
        ("condition_encoder", SILENCE, None),
    ],
)
def test_examples(role, name, official):
    assert official_name(role, name) == official
