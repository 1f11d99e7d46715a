"""An official model as a repository of diffusers: nothing lost, and diffusers' own pipeline takes it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from acestep.errors import CheckpointInvalid
from acestep.weights import conversion
from acestep.weights.conversion import convert
from acestep.weights.layout import find_renderer
from acestep.weights.official_format import PREFIXES, official_name
from tests.weights.miniature import rewrite, shard

TURBO = "acestep-v15-turbo"


def converted(checkpoints, tmp_path):
    target = tmp_path / "repositories" / TURBO
    convert(find_renderer(checkpoints / TURBO, checkpoints), target)
    return target


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_official_to_diffusers_to_official_names_is_lossless(checkpoints, tmp_path, dtype, shards):
    file = checkpoints / TURBO / "model.safetensors"
    official = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    save_file(official, file)
    if shards > 1:
        shard(file, shards)
    target = converted(checkpoints, tmp_path)
    back = {
        official_name(role, name): tensor
        for role in PREFIXES
        for name, tensor in load_file(target / role / "diffusion_pytorch_model.safetensors").items()
    }
    silence = back.pop(None)
    assert torch.equal(silence, torch.load(checkpoints / TURBO / "silence_latent.pt").transpose(1, 2))
    assert back.keys() == official.keys()
    for name, tensor in official.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor), name


def test_diffusers_own_pipeline_loads_and_runs_it(checkpoints, tmp_path):
    from diffusers import AceStepPipeline

    path = checkpoints / TURBO / "silence_latent.pt"
    # The class of diffusers insists on the ten minutes of silence that the released models have.
    torch.save(torch.load(path).repeat(1, 1, 8)[:, :, :15_000].clone(), path)
    pipeline = AceStepPipeline.from_pretrained(converted(checkpoints, tmp_path))
    pipeline.set_progress_bar_config(disable=True)
    latents = pipeline(prompt="x", lyrics="y", audio_duration=6, guidance_scale=1.0, output_type="latent").audios
    assert latents.shape == (1, 150, 8)
    assert latents.isfinite().all()
    assert pipeline.is_turbo


def test_code_beside_the_weights_is_not_converted(checkpoints, tmp_path):
    for folder in (TURBO, "vae", "Qwen3-Embedding-0.6B"):
        (checkpoints / folder / "modeling.py").write_text("raise SystemExit\n")
        (checkpoints / folder / "pytorch_model.bin").write_bytes(b"pickle")
    target = converted(checkpoints, tmp_path)
    assert {path.suffix for path in target.rglob("*") if path.is_file()} == {".json", ".safetensors"}


def test_an_existing_folder_is_not_touched(checkpoints, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="mine exists"):
        convert(find_renderer(checkpoints / TURBO, checkpoints), tmp_path / "mine")
    assert not list((tmp_path / "mine").iterdir())


def test_what_fails_leaves_nothing_behind(checkpoints, tmp_path, monkeypatch):
    rewrite(checkpoints / TURBO / "model.safetensors", {"null_condition_emb": None})
    with pytest.raises(CheckpointInvalid, match="lacks the tensor null_condition_emb"):
        converted(checkpoints, tmp_path)
    assert not list((tmp_path / "repositories").iterdir())


def test_a_disk_that_is_full_is_an_error_of_the_disk(checkpoints, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*arguments, **named):
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(conversion, "save_file", full)
    with pytest.raises(OSError, match=r"could not be written: .*No space left"):
        converted(checkpoints, tmp_path)
    assert not list((tmp_path / "repositories").iterdir())
