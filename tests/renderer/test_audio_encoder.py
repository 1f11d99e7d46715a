"""Recordings to audio codes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from acestep import checkpoints
from acestep.checkpoints import ModelSelection, load_audio_encoder
from acestep.errors import AudioReadError, CheckpointNotFound, OutOfMemory
from acestep.offloading import ModelOffloader
from acestep.renderer.audio_encoder import AudioEncoder
from acestep.renderer.context import code_latents, cover_latents
from acestep.renderer.models import AudioEncoderModels
from acestep.renderer.vae import plan_encoding
from acestep.synthetic import renderer as synthetic
from acestep.types import AUDIO_CODE_COUNT, SAMPLE_RATE, Placement
from acestep.weights import meta_modules

SELECTION = ModelSelection(dit="acestep-v15-tiny", device="cpu")


@pytest.fixture(scope="module")
def encoder() -> AudioEncoder:
    return load_audio_encoder(SELECTION)


def recording(seconds: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, round(seconds * SAMPLE_RATE), generator=generator) * 2 - 1


@pytest.mark.parametrize(("seconds", "codes"), [(0.2, 1), (0.21, 2), (1.0, 5), (7.3, 37), (25.0, 125)])
def test_five_codes_a_second_the_last_one_filled_up(encoder: AudioEncoder, seconds: float, codes: int) -> None:
    found = encoder.codes(recording(seconds))
    assert len(found) == codes
    assert all(0 <= code < AUDIO_CODE_COUNT for code in found)


def test_codes_depend_on_the_audio_and_on_nothing_else(encoder: AudioEncoder) -> None:
    assert encoder.codes(recording(3)) == encoder.codes(recording(3)) != encoder.codes(recording(3, seed=1))


def test_what_is_shorter_than_one_code_is_refused(encoder: AudioEncoder) -> None:
    with pytest.raises(AudioReadError, match=r"0\.1 s is too short: one audio code is 0\.2 s"):
        encoder.codes(recording(0.1))


def test_the_codes_are_those_that_a_cover_follows(tiny_models) -> None:
    models = tiny_models.renderer.models
    encoder = AudioEncoder(AudioEncoderModels.of(models))
    audio = recording(2.1)
    latents = encoder.encode(audio, plan_encoding(models.vae, audio.shape[-1]))
    with torch.inference_mode():
        torch.testing.assert_close(
            code_latents(models, [encoder.codes(audio)])[:, : latents.shape[1]], cover_latents(models, latents)
        )


def test_loaded_alone_it_gives_the_codes_that_it_gives_inside_a_renderer(encoder: AudioEncoder, tiny_models) -> None:
    inside = AudioEncoder(AudioEncoderModels.of(tiny_models.renderer.models))
    assert inside.models.silence_latent.shape == encoder.models.silence_latent.shape
    assert encoder.codes(recording(3.3)) == inside.codes(recording(3.3))


def test_nothing_but_vae_and_audio_tokenizer_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """R55."""

    class Built:
        def __init__(self, *_arguments: object, **_options: object) -> None:
            raise AssertionError("a model that encoding does not need was built")

        from_config = __init__

    kept = {
        role: made for role, made in meta_modules.RENDERER_MODULES.items() if role in meta_modules.AUDIO_ENCODER_MODULES
    }
    monkeypatch.setattr(meta_modules, "RENDERER_MODULES", dict.fromkeys(meta_modules.RENDERER_MODULES, Built) | kept)
    monkeypatch.setattr(synthetic, "build_qwen3", Built)
    assert len(load_audio_encoder(SELECTION).codes(recording(1))) == 5


def test_weights_that_are_not_there_are_named() -> None:
    with pytest.raises(CheckpointNotFound, match="acestep-v15-turbo"):
        load_audio_encoder(ModelSelection(device="cpu"))


@pytest.mark.parametrize(("module", "method", "stage"), [
    ("vae", "encode", "vae.encode"), ("audio_tokenizer", "tokenize", "audio.tokenize"),
])  # fmt: skip
def test_out_of_memory_names_its_stage(module: str, method: str, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise torch.OutOfMemoryError("no room for 3 GiB")

    encoder = load_audio_encoder(SELECTION)
    monkeypatch.setattr(getattr(encoder.models, module), method, fail)
    with pytest.raises(OutOfMemory) as failure:
        encoder.codes(recording(1))
    assert failure.value.stage == stage


@pytest.mark.parametrize("offload", [True, False])
def test_r133_each_model_is_on_the_device_while_it_is_used_and_only_then(
    tiny_models, monkeypatch: pytest.MonkeyPatch, offload: bool
) -> None:
    moves: list[tuple[str, str]] = []

    class Watched(ModelOffloader):
        def move(self, name: str, model: nn.Module, destination: torch.device) -> int:
            moves.append((name, "here" if destination is self.device else "away"))
            return super().move(name, model, destination)

    models = AudioEncoderModels.of(tiny_models.renderer.models)
    encoder = AudioEncoder(models, Watched(models.device, Placement(offload_to_cpu=offload)))
    assert encoder.codes(recording(1)) == AudioEncoder(models).codes(recording(1))
    travels = [(name, where) for name in ("vae", "audio_tokenizer") for where in ("here", "away")]
    assert moves == (travels if offload else [])


def test_r133_what_waits_on_the_host_is_loaded_there(monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[Placement] = []
    monkeypatch.setattr(checkpoints, "effective_placement", lambda asked, _device: placed.append(asked) or asked)
    encoder = load_audio_encoder(replace(SELECTION, placement=Placement(offload_to_cpu=True, compile=True)))
    assert encoder.offloader.offloads("vae")
    # Only the diffusion transformer is compiled, which is not loaded here.
    assert placed == [Placement(offload_to_cpu=True)]
    assert len(encoder.codes(recording(1))) == 5
