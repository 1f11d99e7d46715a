"""A diffusion model on disk: loaded whole in either layout, or refused with the one thing that is wrong."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from acestep.checkpoints import ModelSelection, load_renderer_models
from acestep.errors import CheckpointInvalid, CheckpointNotFound
from acestep.renderer.models import RendererModels
from acestep.weights.conversion import convert
from acestep.weights.layout import find_renderer
from acestep.weights.renderer import read_silence
from tests.weights.miniature import copy_golden, rewrite, shard

CPU = torch.device("cpu")
TURBO = "acestep-v15-turbo"
ROLES = ("transformer", "condition_encoder", "audio_tokenizer", "audio_token_detokenizer", "vae", "text_encoder")


def load(root: Path, name: str = TURBO, dtype: torch.dtype = torch.float32) -> RendererModels:
    return load_renderer_models(ModelSelection(dit=name, checkpoint_root=root), CPU, dtype)


def refusal(root: Path, name: str = TURBO) -> str:
    with pytest.raises(CheckpointInvalid) as caught:
        load(root, name)
    text = str(caught.value)
    assert "\n" not in text
    return text


def tensors(models: RendererModels) -> dict[str, torch.Tensor]:
    return {
        f"{role}.{name}": tensor
        for role in ROLES
        for kind in ("named_parameters", "named_buffers")
        for name, tensor in getattr(getattr(models, role), kind)()
    }


def assert_same(actual: RendererModels, expected: RendererModels) -> None:
    ours, theirs = tensors(actual), tensors(expected)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def test_every_tensor_has_its_stored_value_and_none_is_without_memory(checkpoints):
    models = load(checkpoints)
    stored = load_file(checkpoints / TURBO / "model.safetensors")
    weights = tensors(models)
    assert torch.equal(weights["transformer.proj_in_conv.weight"], stored["decoder.proj_in.1.weight"])
    assert torch.equal(weights["condition_encoder.null_condition_emb"], stored["null_condition_emb"])
    assert not any(tensor.is_meta or tensor.requires_grad for tensor in weights.values())
    assert not any(getattr(models, role).training for role in ROLES)
    assert (models.name, models.weights) == (TURBO, "checkpoint")


def test_weights_are_of_the_number_type_asked_for_and_frequencies_and_levels_stay_exact(checkpoints):
    models = load(checkpoints, dtype=torch.bfloat16)
    exact = {"text_encoder.rotary_emb.inv_freq", "text_encoder.rotary_emb.original_inv_freq"}
    for name, tensor in tensors(models).items():
        if name in exact or name.startswith("audio_tokenizer.quantizer.scales"):
            assert tensor.dtype == torch.float32, name
        elif tensor.is_floating_point():
            assert tensor.dtype == torch.bfloat16, name


@pytest.mark.parametrize(
    ("name", "is_turbo", "shift"),
    [
        ("acestep-v15-turbo", True, 3.0),
        ("acestep-v15-turbo-shift1", True, 1.0),
        ("acestep-v15-turbo-shift3", True, 3.0),
        ("acestep-v15-base", False, 1.0),
        ("acestep-v15-sft", False, 1.0),
    ],
)
def test_variants_are_recognised_by_configuration_and_their_shift_by_name(checkpoints, name, is_turbo, shift):
    source = checkpoints / ("acestep-v15-turbo" if is_turbo else "acestep-v15-base")
    if source.name != name:
        source.rename(checkpoints / name)
    models = load(checkpoints, name)
    assert (models.name, models.is_turbo, models.default_shift) == (name, is_turbo, shift)


def test_encoders_of_an_xl_model_have_sizes_of_their_own(checkpoints):
    """As in the XL models, where the encoders are narrower than the transformer."""
    folder = checkpoints / TURBO
    config = json.loads((folder / "config.json").read_text())
    wide = {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 8, "num_key_value_heads": 2}
    narrow = {f"encoder_{size}": config[size] for size in wide}
    (folder / "config.json").write_text(json.dumps(config | wide | narrow))
    from acestep.weights.official_format import official_name
    from acestep.weights.renderer import official_modules

    generator = torch.Generator().manual_seed(1)
    state = load_file(folder / "model.safetensors")
    for name, tensor in official_modules(folder)["transformer"].state_dict().items():
        state[str(official_name("transformer", name))] = torch.randn(tensor.shape, generator=generator)
    save_file(state, folder / "model.safetensors")
    models = load(checkpoints)
    assert models.transformer.config.hidden_size == 96
    assert models.transformer.condition_embedder.weight.shape == (96, 64)
    assert models.condition_encoder.null_condition_emb.shape == (1, 1, 64)


def test_a_path_is_a_name_too_and_its_last_part_names_the_model(checkpoints, monkeypatch):
    assert_same(load(Path("elsewhere"), str(checkpoints / TURBO)), load(checkpoints))
    monkeypatch.chdir(checkpoints / TURBO)
    assert load(Path("elsewhere"), ".").name == TURBO


def test_shards_load_like_one_file(checkpoints, tmp_path):
    expected = load(checkpoints)
    sharded = copy_golden(tmp_path / "sharded")
    shard(sharded / TURBO / "model.safetensors", 4)
    shard(sharded / "Qwen3-Embedding-0.6B" / "model.safetensors", 2)
    assert_same(load(sharded), expected)


def test_a_diffusers_repository_loads_like_the_official_layout_it_was_made_from(checkpoints, tmp_path):
    repository = tmp_path / "diffusers" / TURBO
    convert(find_renderer(checkpoints / TURBO, checkpoints), repository)
    models = load(repository.parent)
    assert_same(models, load(checkpoints))
    assert (models.is_turbo, models.default_shift) == (True, 3.0)


def test_the_text_encoder_may_carry_the_prefix_of_a_whole_model_and_an_older_configuration(checkpoints, tmp_path):
    expected = load(checkpoints)
    older = copy_golden(tmp_path / "older")
    folder = older / "Qwen3-Embedding-0.6B"
    file = folder / "model.safetensors"
    save_file({f"model.{name}": tensor for name, tensor in load_file(file).items()}, file)
    config = json.loads((folder / "config.json").read_text())
    rotary = config.pop("rope_parameters")
    config |= {"rope_theta": rotary["rope_theta"], "rope_scaling": None, "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    assert_same(load(older), expected)


def test_a_missing_tensor_is_named(checkpoints):
    rewrite(checkpoints / TURBO / "model.safetensors", {"decoder.layers.2.self_attn.q_proj.weight": None})
    assert refusal(checkpoints) == (f"{checkpoints / TURBO} lacks the tensor decoder.layers.2.self_attn.q_proj.weight")


def test_an_extra_tensor_is_named(checkpoints):
    rewrite(checkpoints / TURBO / "model.safetensors", {f"decoder.layers.{n}.odd": torch.zeros(2) for n in (1, 2)})
    text = refusal(checkpoints)
    assert "has the tensor decoder.layers.1.odd (and 1 more)" in text
    assert "which this architecture does not have" in text


def test_a_misshapen_tensor_is_named_with_both_shapes(checkpoints):
    rewrite(checkpoints / TURBO / "model.safetensors", {"detokenizer.proj_out.weight": torch.zeros(8, 63)})
    text = refusal(checkpoints)
    assert "detokenizer.proj_out.weight" in text
    assert "has shape [8, 63], but the configuration requires [8, 64]" in text


def test_a_tensor_of_the_vae_and_of_the_text_encoder_is_checked_too(checkpoints):
    rewrite(checkpoints / "vae" / "diffusion_pytorch_model.safetensors", {"decoder.conv1.bias": None})
    assert "lacks the tensor decoder.conv1.bias" in refusal(checkpoints)


def test_another_models_configuration_is_a_matter_of_shapes(checkpoints):
    path = checkpoints / TURBO / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": 128}))
    assert "but the configuration requires" in refusal(checkpoints)


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": "wide"},
        {"hidden_size": -4},
        {"layer_types": 3},
        {"num_hidden_layers": 9},
        {"rope_parameters": [1]},
    ],
)
def test_a_configuration_that_no_module_can_be_built_from_is_named(checkpoints, values):
    path = checkpoints / TURBO / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rope_theta": None, **values}))
    assert "config.json does not describe a module that can be built" in refusal(checkpoints)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_configuration_that_is_no_json_object_is_named(checkpoints, text):
    (checkpoints / TURBO / "config.json").write_text(text)
    assert str(checkpoints / TURBO / "config.json") in refusal(checkpoints)


class Bomb:
    """Runs a command when it is unpickled by a reader that lets it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("plain", [True, False])
def test_a_malicious_silence_latent_is_not_executed(checkpoints, tmp_path, plain):
    trace = tmp_path / "executed"
    path = checkpoints / TURBO / "silence_latent.pt"
    if plain:
        path.write_bytes(pickle.dumps(Bomb(trace), protocol=2))  # the one that torch.load reads without a warning
    else:
        torch.save(Bomb(trace), path)
    text = refusal(checkpoints)
    assert "silence_latent.pt cannot be read as a tensor" in text
    assert "weights_only" not in text
    assert not trace.exists()
    pickle.loads(pickle.dumps(Bomb(trace)))
    assert trace.exists(), "the bomb is a dud, so the test shows nothing"


@pytest.mark.parametrize(
    "value", [torch.zeros(3), torch.zeros(2, 8, 10), {"silence": torch.zeros(1, 8, 10)}, torch.zeros(1, 9, 10)]
)
def test_a_silence_latent_of_something_else_is_named(checkpoints, value):
    torch.save(value, checkpoints / TURBO / "silence_latent.pt")
    assert "silence_latent.pt" in refusal(checkpoints)


def test_a_missing_or_truncated_silence_latent_is_named(checkpoints):
    path = checkpoints / TURBO / "silence_latent.pt"
    path.write_bytes(path.read_bytes()[:1000])
    assert "silence_latent.pt cannot be read as a tensor" in refusal(checkpoints)
    path.unlink()
    assert refusal(checkpoints) == f"there is no file {path}"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("silence", "problem"),
    [
        (torch.zeros(1, 64, 1).expand(1, 64, 10**9), "the encoded silence has 1,000,000,000 frames"),
        (torch.zeros(1, 1, 1).expand(1, 64, 50_000), "but stores fewer"),
        (torch.zeros(1, 64, 0), "the encoded silence has 0 frames"),
    ],
)
def test_a_silence_of_any_size_costs_no_memory(checkpoints, silence, problem):
    """N14."""
    torch.save(silence, checkpoints / TURBO / "silence_latent.pt")
    assert problem in refusal(checkpoints)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_lyric_encoder_hidden_layers", 100_000),
        ("num_hidden_layers", 10**9),
        ("hidden_size", 10**12),
        ("head_dim", 2**40),
        ("fsq_input_levels", [1_000] * 6),
        ("layer_types", ["full_attention"] * 100_000),
        ("rms_norm_eps", 1e300),
    ],
)
def test_a_size_that_no_model_has_is_refused_before_anything_is_built(checkpoints, key, value):
    """N14."""
    path = checkpoints / TURBO / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    assert f"{path}: {key} " in refusal(checkpoints)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["model.safetensors", "silence_latent.pt", "config.json"])
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(checkpoints, name):
    """N14."""
    path = checkpoints / TURBO / name
    path.unlink()
    os.mkfifo(path)
    assert refusal(checkpoints) == f"{path} is not a regular file"


@pytest.mark.parametrize("name", ["model.safetensors", "silence_latent.pt"])
def test_a_pointer_of_git_lfs_is_named_as_one(checkpoints, name):
    """N8."""
    path = checkpoints / TURBO / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "is a Git LFS pointer" in refusal(checkpoints)


@pytest.mark.parametrize("name", ["config.json", "../Qwen3-Embedding-0.6B/tokenizer.json"])
@pytest.mark.parametrize("content", ["[" * 200_000, '{"a":' * 200_000, '{"num_hidden_layers": 1' + "0" * 6_000 + "}"])
def test_a_document_that_is_too_deep_or_too_long_is_one_line(checkpoints, name, content):
    """N13."""
    (checkpoints / TURBO / name).write_text(content)
    assert "\n" not in (said := refusal(checkpoints))
    assert name.rpartition("/")[2] in said


def test_silence_is_turned_to_frames_by_channels(checkpoints):
    path = checkpoints / TURBO / "silence_latent.pt"
    stored = torch.load(path)
    silence = read_silence(path)
    assert silence.shape == (1, stored.shape[2], stored.shape[1])
    assert silence.is_contiguous()
    assert torch.equal(silence[0, 7], stored[0, :, 7])


def test_code_in_a_checkpoint_is_not_run(checkpoints, tmp_path):
    """Official folders carry their modelling code, and configurations that point to it."""
    trace = tmp_path / "executed"
    for folder in (TURBO, "Qwen3-Embedding-0.6B"):
        (checkpoints / folder / "modeling.py").write_text(f"open({str(trace)!r}, 'w')\n")
        path = checkpoints / folder / "config.json"
        auto = {"auto_map": {"AutoModel": "modeling.Model", "AutoConfig": "modeling.Config"}}
        path.write_text(json.dumps(json.loads(path.read_text()) | auto))
    load(checkpoints)
    assert not trace.exists()


def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_named(checkpoints):
    folder = checkpoints / "Qwen3-Embedding-0.6B"
    description = json.loads((folder / "tokenizer.json").read_text())
    description["added_tokens"].append(description["added_tokens"][0] | {"id": 400, "content": "<|more|>"})
    (folder / "tokenizer.json").write_text(json.dumps(description))
    assert "has token 400, but the embedding ends at row 399" in refusal(checkpoints)


@pytest.mark.parametrize("role", ["transformer", "audio_tokenizer", "vae", "text_encoder"])
def test_a_folder_that_a_diffusers_repository_lacks_is_named(checkpoints, tmp_path, role):
    repository = tmp_path / "diffusers" / TURBO
    convert(find_renderer(checkpoints / TURBO, checkpoints), repository)
    (repository / role).rename(repository / "gone")
    text = refusal(repository.parent)
    assert str(repository / role) in text
    assert ("take the folder from" in text) == (role == "audio_tokenizer")


@pytest.mark.parametrize("folder", ["vae", "Qwen3-Embedding-0.6B"])
def test_what_the_official_layout_needs_beside_the_model_is_named(checkpoints, folder):
    (checkpoints / folder).rename(checkpoints / "gone")
    with pytest.raises(CheckpointNotFound, match=f"needs the folder {folder}: looked for .*part of acestep-v15-turbo"):
        load(checkpoints)
