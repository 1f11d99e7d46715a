"""From a name to models: found, built on request, or an error with solutions; random weights only on request."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from acestep.checkpoints import TINY_DIT, TINY_LM, ModelSelection, load_models
from acestep.errors import BackendUnavailable, CheckpointInvalid, CheckpointNotFound, DeviceUnavailable
from tests.weights.miniature import GOLDEN_CHECKPOINTS


def test_a_name_without_weights_lists_paths_and_three_solutions(tmp_path):
    with pytest.raises(CheckpointNotFound) as caught:
        load_models(ModelSelection(lm=None, device="cpu", checkpoint_root=tmp_path))
    message = str(caught.value)
    assert "acestep-v15-turbo" in message
    assert str(tmp_path / "acestep-v15-turbo") in message
    assert "copy them there" in message
    assert caught.value.fields == ("fetch", "weights")
    assert caught.value.model == "acestep-v15-turbo"
    assert "\n" not in message


def test_a_name_that_no_architecture_has_lists_those_that_exist():
    with pytest.raises(CheckpointNotFound, match="acestep-v15-turbo"):
        load_models(ModelSelection(dit="acestep-v99", lm=None, weights="synthetic", device="cpu"))
    with pytest.raises(CheckpointNotFound, match="acestep-5Hz-lm-4B"):
        load_models(ModelSelection(dit=TINY_DIT, lm="acestep-5Hz-lm-9B", weights="synthetic", device="cpu"))


def test_weights_on_disk_are_not_replaced_by_random_ones(tmp_path):
    (tmp_path / "acestep-v15-turbo").mkdir()
    with pytest.raises(CheckpointInvalid, match="is not a diffusion model"):
        load_models(ModelSelection(lm=None, device="cpu", checkpoint_root=tmp_path))


def test_weights_are_downloaded_only_with_fetch(tmp_path):
    def fetch(name: str, root: Path) -> None:
        asked.append(name)
        (root / name).symlink_to(GOLDEN_CHECKPOINTS / "acestep-v15-turbo")

    asked: list[str] = []
    for beside in ("vae", "Qwen3-Embedding-0.6B"):
        (tmp_path / beside).symlink_to(GOLDEN_CHECKPOINTS / beside)
    selection = ModelSelection(lm=None, device="cpu", checkpoint_root=tmp_path)
    with pytest.raises(CheckpointNotFound):
        load_models(selection)
    models = load_models(replace(selection, fetch=fetch))
    assert models.renderer.models.weights == "checkpoint"
    load_models(replace(selection, fetch=fetch))
    assert asked == ["acestep-v15-turbo"]


def test_what_a_fetch_did_not_bring_is_still_not_found(tmp_path):
    with pytest.raises(CheckpointNotFound, match="no weights for 'acestep-v15-turbo'"):
        load_models(ModelSelection(lm=None, device="cpu", checkpoint_root=tmp_path, fetch=lambda name, root: None))


def test_an_unknown_device_or_backend_is_refused_before_anything_loads():
    with pytest.raises(DeviceUnavailable):
        load_models(ModelSelection(dit="nowhere", device="tpu"))
    with pytest.raises(BackendUnavailable, match="choose auto"):
        load_models(ModelSelection(dit="nowhere", device="cpu", lm_backend="fast"))


def test_the_tiny_models_need_no_files_and_are_a_few_megabytes():
    models = load_models(ModelSelection(dit=TINY_DIT, lm=TINY_LM, device="cpu"))
    renderer = models.renderer.models
    modules = [
        renderer.transformer,
        renderer.condition_encoder,
        renderer.audio_tokenizer,
        renderer.audio_token_detokenizer,
        renderer.vae,
        renderer.text_encoder,
        models.planner.backend.model.body,
    ]
    tensors = {t.data_ptr(): t for module in modules for t in (*module.parameters(), *module.buffers())}
    assert sum(t.numel() * t.element_size() for t in tensors.values()) < 20 * 2**20
    assert renderer.weights == "synthetic"
    assert models.device == torch.device("cpu")


DIGEST = """
import hashlib
from acestep.checkpoints import ModelSelection, load_models, TINY_DIT, TINY_LM
models = load_models(ModelSelection(dit=TINY_DIT, lm=TINY_LM, device="cpu"))
renderer, digest = models.renderer.models, hashlib.sha256()
modules = (renderer.transformer, renderer.condition_encoder, renderer.audio_tokenizer, renderer.audio_token_detokenizer,
           renderer.vae, renderer.text_encoder, models.planner.backend.model.body)
for module in modules:
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
digest.update(renderer.text_tokenizer.to_str().encode())
print(digest.hexdigest())
"""


def test_the_tiny_models_are_byte_identical_in_every_process():
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, threads in (("1", "1"), ("2", "2"))
    }
    assert len(digests) == 1
    assert len(digests.pop().strip()) == len(hashlib.sha256().hexdigest())
