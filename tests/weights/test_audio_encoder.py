"""What turns a recording into audio codes, read from disk without the rest of its checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from acestep.checkpoints import ModelSelection, load_audio_encoder, load_renderer_models
from acestep.errors import CheckpointInvalid
from acestep.renderer.audio_encoder import AudioEncoder
from acestep.renderer.models import AudioEncoderModels
from acestep.weights import meta_modules
from acestep.weights.conversion import convert
from acestep.weights.layout import OfficialRenderer, find_renderer
from acestep_otel.profiler.cli import main
from tests.profiler.outputs import OUTPUTS, result
from tests.weights.miniature import LANGUAGE_MODEL, rewrite, write_language_model

TURBO = "acestep-v15-turbo"
CPU = torch.device("cpu")


def load(root: Path, name: str = TURBO) -> AudioEncoder:
    return load_audio_encoder(ModelSelection(dit=name, checkpoint_root=root, device="cpu"))


def recording(seconds: float = 2.3) -> torch.Tensor:
    return torch.rand(2, round(seconds * 48_000), generator=torch.Generator().manual_seed(0)) * 2 - 1


def converted(checkpoints: Path, root: Path) -> Path:
    """A folder with the same checkpoint as a diffusers repository."""
    found = find_renderer(checkpoints / TURBO, checkpoints)
    assert isinstance(found, OfficialRenderer)
    root.mkdir()
    convert(found, root / TURBO)
    return root


@pytest.fixture(params=["official", "diffusers"])
def root(request: pytest.FixtureRequest, checkpoints: Path, tmp_path: Path) -> Path:
    """The same checkpoint in either layout, under one name."""
    if request.param == "official":
        return checkpoints
    return converted(checkpoints, tmp_path / "converted")


def test_it_encodes_as_the_whole_checkpoint_does(root: Path) -> None:
    """R55."""
    alone = load(root)
    whole = load_renderer_models(ModelSelection(dit=TURBO, checkpoint_root=root), CPU, torch.float32)
    assert (alone.models.name, alone.models.weights) == (TURBO, "checkpoint")
    assert torch.equal(alone.models.silence_latent, whole.condition_encoder.silence_latent)
    assert alone.codes(recording()) == AudioEncoder(AudioEncoderModels.of(whole)).codes(recording())


def test_nothing_else_is_built(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R55."""
    kept = {
        role: made for role, made in meta_modules.RENDERER_MODULES.items() if role in meta_modules.AUDIO_ENCODER_MODULES
    }
    monkeypatch.setattr(meta_modules, "RENDERER_MODULES", kept)
    assert len(load(root).codes(recording())) == 12


def test_a_tensor_that_is_missing_is_named(checkpoints: Path) -> None:
    rewrite(checkpoints / TURBO / "model.safetensors", {"tokenizer.audio_acoustic_proj.weight": None})
    with pytest.raises(CheckpointInvalid, match=r"lacks the tensor tokenizer\.audio_acoustic_proj\.weight"):
        load(checkpoints)


def test_what_belongs_to_other_models_does_not_matter(checkpoints: Path) -> None:
    rewrite(checkpoints / TURBO / "model.safetensors", {"decoder.proj_in.1.weight": None})
    assert load(checkpoints).codes(recording())


def test_a_repository_without_silence_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    root = converted(checkpoints, tmp_path / "converted")
    rewrite(root / TURBO / "condition_encoder" / "diffusion_pytorch_model.safetensors", {"silence_latent": None})
    with pytest.raises(CheckpointInvalid, match="lacks the tensor silence_latent"):
        load(root)


def test_a_recording_is_understood_with_weights_from_disk(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R55: the language model, the VAE and the audio tokenizer of checkpoints."""
    monkeypatch.chdir(tmp_path)
    write_language_model(checkpoints / LANGUAGE_MODEL)
    soundfile.write("song.wav", np.random.default_rng(0).uniform(-0.5, 0.5, (96_000, 2)), 48_000)
    arguments = ["--mode", "understand", "--device", "cpu", "--src-audio", "song.wav", "--lyrics-token-limit", "8"]
    assert main([*arguments, "--no-warmup", "--config-path", TURBO, "--lm-model", LANGUAGE_MODEL, *OUTPUTS]) == 0
    effective = result()["effective_settings"]
    assert (effective["audio_encoder"], effective["weights"]) == (TURBO, "checkpoint")
