"""Folders are recognised by their content, not by their name."""

from __future__ import annotations

import json

import pytest

from acestep.errors import CheckpointInvalid
from acestep.weights.layout import (
    DiffusersRenderer,
    OfficialRenderer,
    find_renderer,
    kind_of,
    locate,
    require_language_model_folder,
)
from tests.weights.miniature import copy_golden


def test_an_official_model_is_recognised_under_any_name(checkpoints):
    folder = (checkpoints / "acestep-v15-turbo").rename(checkpoints / "vae-of-mine")
    assert find_renderer(folder, checkpoints) == OfficialRenderer(
        folder, vae=checkpoints / "vae", text_encoder=checkpoints / "Qwen3-Embedding-0.6B"
    )


def test_vae_and_text_encoder_are_beside_the_model_or_in_the_checkpoint_folder(checkpoints, tmp_path):
    elsewhere = tmp_path / "elsewhere" / "model"
    (checkpoints / "acestep-v15-turbo").rename(elsewhere.parent.mkdir() or elsewhere)
    assert find_renderer(elsewhere, checkpoints).vae == checkpoints / "vae"
    (checkpoints / "vae").rename(elsewhere.parent / "vae")
    assert find_renderer(elsewhere, checkpoints).vae == elsewhere.parent / "vae"


def test_a_diffusers_repository_is_recognised(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "AceStepPipeline"}))
    assert find_renderer(tmp_path, tmp_path) == DiffusersRenderer(tmp_path)


def test_another_pipeline_is_not_taken_for_ours(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    assert kind_of(tmp_path) is None
    with pytest.raises(CheckpointInvalid, match="is not a diffusion model"):
        find_renderer(tmp_path, tmp_path)


def test_swapped_models_are_recognised(checkpoints):
    language_model = checkpoints / "Qwen3-Embedding-0.6B"
    with pytest.raises(CheckpointInvalid, match="is a language model: give it as `lm`"):
        find_renderer(language_model, checkpoints)
    with pytest.raises(CheckpointInvalid, match="is a diffusion model: give it as `dit`"):
        require_language_model_folder(checkpoints / "acestep-v15-turbo")
    require_language_model_folder(language_model)


def test_a_folder_of_several_models_lists_them(checkpoints):
    with pytest.raises(CheckpointInvalid, match=r"contains several models: name one of .*acestep-v15-turbo"):
        find_renderer(checkpoints, checkpoints)
    with pytest.raises(CheckpointInvalid, match="is not a language model"):
        require_language_model_folder(checkpoints / "vae")


def test_a_path_wins_over_the_checkpoint_folder(checkpoints, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = copy_golden(tmp_path / "other")
    assert str(locate("acestep-v15-turbo", other)) == str(other / "acestep-v15-turbo")
    assert str(locate("checkpoints/acestep-v15-turbo", other)) == "checkpoints/acestep-v15-turbo"
    assert locate("acestep-v15-sft", other) is None


def test_a_link_to_itself_and_a_file_are_no_folders(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(CheckpointInvalid, match="loop is a broken symbolic link"):
        locate("loop", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointInvalid, match="file is a file: give the folder"):
        locate("file", tmp_path)
