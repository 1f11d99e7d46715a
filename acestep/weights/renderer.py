"""A diffusion model from disk, in either layout: five modules of diffusers, a text encoder and its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch

from acestep.errors import CheckpointInvalid
from acestep.renderer.models import AudioEncoderModels, RendererModels, trained_shift
from acestep.weights.layout import CONFIG, DiffusersRenderer, OfficialRenderer
from acestep.weights.meta_modules import RENDERER_MODULES, assign, empty_module, restore_quantizer
from acestep.weights.official_format import PREFIXES, SILENCE, is_turbo, module_arguments, official_name
from acestep.weights.plausible import MOST_FRAMES, read_configuration
from acestep.weights.qwen3 import load_qwen3
from acestep.weights.tensor_files import TensorFiles, require_regular
from acestep.weights.text_tokenizer import load_text_tokenizer

OFFICIAL_STEM: Final = "model"
"""File name of official weights, and of those that transformers saves, before ``.safetensors``."""
DIFFUSERS_STEM: Final = "diffusion_pytorch_model"
"""The same of modules that diffusers saves."""
SILENCE_FILE: Final = f"{SILENCE}.pt"
_LEFT_OUT: Final = "some repositories leave it out, take the folder from ACE-Step/acestep-v15-xl-sft-diffusers"


def load_renderer(
    found: OfficialRenderer | DiffusersRenderer, *, device: torch.device, dtype: torch.dtype
) -> RendererModels:
    """Load a recognised diffusion model.

    The weights are the only copy: tensors are read one by one into the memory that the modules keep.

    Args:
        found: of ``acestep.weights.layout.find_renderer``.
        device: of the weights.
        dtype: number type of the weights.

    Raises:
        CheckpointInvalid: a file is corrupt, or does not fit its configuration.
    """
    # A path such as "." has its name only when it is absolute.
    name = found.folder.absolute().name
    if isinstance(found, OfficialRenderer):
        modules = _load_official(found.folder, device, dtype)
        modules["vae"] = _load_diffusers_module("vae", found.vae, device, dtype)
        text_encoder, tokenizer = found.text_encoder, found.text_encoder
    else:
        modules = {role: _load_diffusers_module(role, found.folder / role, device, dtype) for role in RENDERER_MODULES}
        text_encoder, tokenizer = found.folder / "text_encoder", found.folder / "tokenizer"
    turbo = is_turbo(modules["transformer"].config)
    encoder = load_qwen3(text_encoder, device=device, dtype=dtype)
    return RendererModels(
        name=name,
        weights="checkpoint",
        is_turbo=turbo,
        default_shift=trained_shift(name, is_turbo=turbo),
        **modules,
        text_encoder=encoder,
        text_tokenizer=load_text_tokenizer(tokenizer, rows=encoder.config.vocab_size),
        device=device,
        dtype=dtype,
    )


def load_audio_encoder_weights(
    found: OfficialRenderer | DiffusersRenderer, *, device: torch.device, dtype: torch.dtype
) -> AudioEncoderModels:
    """Load the VAE, the audio tokenizer and the silence latent of a recognised model, and read nothing else.

    Args:
        found: of ``acestep.weights.layout.find_renderer``.
        device: of the weights.
        dtype: number type of the weights.

    Raises:
        CheckpointInvalid: a file is corrupt, or does not fit its configuration.
    """
    if isinstance(found, OfficialRenderer):
        tokenizer = _load_official_tokenizer(found.folder, device, dtype)
        vae = _load_diffusers_module("vae", found.vae, device, dtype)
        silence = read_silence(found.folder / SILENCE_FILE)
    else:
        tokenizer, vae = (
            _load_diffusers_module(role, found.folder / role, device, dtype) for role in ("audio_tokenizer", "vae")
        )
        silence = _read_diffusers_silence(found.folder / "condition_encoder")
    return AudioEncoderModels(
        name=found.folder.absolute().name,
        weights="checkpoint",
        vae=vae,
        audio_tokenizer=tokenizer,
        silence_latent=silence.to(device, dtype),
        device=device,
        dtype=dtype,
    )


def official_modules(folder: Path) -> dict[str, Any]:
    """The four modules of an official folder, without memory.

    Raises:
        CheckpointInvalid: the configuration does not describe such modules.
    """
    with _configuration_errors(folder / CONFIG):
        arguments = module_arguments(read_configuration(folder / CONFIG))
        return {role: empty_module(role, values) for role, values in arguments.items()}


def read_silence(path: Path) -> torch.Tensor:
    """What the VAE encodes silence to.

    Args:
        path: stored as ``[1, channels, frames]``; a pickle, which is read without running anything that is in it.

    Returns:
        float32 on the host, shape ``[1, frames, channels]``.

    Raises:
        CheckpointInvalid: the file does not exist, or does not contain such a tensor.
    """
    require_regular(path)
    try:
        silence = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # A damaged or hostile pickle can raise anything, and PyTorch's own message advises running it.
        raise CheckpointInvalid(
            f"{path} cannot be read as a tensor ({type(error).__name__}): it is damaged, or contains code, which "
            "is not executed: download it again"
        ) from error
    if not isinstance(silence, torch.Tensor) or silence.dim() != 3 or silence.shape[0] != 1:
        raise CheckpointInvalid(f"{path} contains no tensor of shape [1, channels, frames]")
    _require_few_frames(silence.shape[2], path)
    # A tensor may repeat a few stored numbers over any size.
    if silence.numel() > silence.untyped_storage().nbytes() // silence.element_size():
        raise CheckpointInvalid(f"{path} declares a tensor of {silence.numel():,} numbers but stores fewer")
    return silence.transpose(1, 2).float().contiguous()


def _load_official(folder: Path, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    modules = official_modules(folder)
    silence = read_silence(folder / SILENCE_FILE)
    _require_channels(silence, modules["condition_encoder"], folder / SILENCE_FILE)
    assign(modules, TensorFiles.open(folder, OFFICIAL_STEM), official_name, device=device, dtype=dtype)
    modules["condition_encoder"].silence_latent = silence.to(device, dtype)
    restore_quantizer(modules["audio_tokenizer"])
    return modules


def _load_official_tokenizer(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    role = "audio_tokenizer"
    with _configuration_errors(folder / CONFIG):
        module = empty_module(role, module_arguments(read_configuration(folder / CONFIG))[role])
    files = TensorFiles.open(folder, OFFICIAL_STEM)
    others = [name for name in files.tensors if not name.startswith(PREFIXES[role])]
    assign({role: module}, files, official_name, device=device, dtype=dtype, ignored=others)
    restore_quantizer(module)
    return module


def _read_diffusers_silence(folder: Path) -> torch.Tensor:
    files = TensorFiles.open(folder, DIFFUSERS_STEM)
    if SILENCE not in files.tensors:
        raise CheckpointInvalid(f"{folder} lacks the tensor {SILENCE}")
    shape = files.tensors[SILENCE].shape
    if len(shape) != 3 or shape[0] != 1:
        raise CheckpointInvalid(f"{folder}: {SILENCE} has the shape {list(shape)}, not [1, frames, channels]")
    _require_few_frames(shape[1], folder)
    silence = torch.empty(shape)
    files.read_into({SILENCE: silence})
    return silence


def _load_diffusers_module(role: str, folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    if not folder.is_dir():
        way_out = _LEFT_OUT if role.startswith("audio_token") else "download it again"
        raise CheckpointInvalid(f"{folder} is missing: {way_out}")
    with _configuration_errors(folder / CONFIG):
        module = empty_module(role, read_configuration(folder / CONFIG))
    files = TensorFiles.open(folder, DIFFUSERS_STEM)
    if role == "condition_encoder" and SILENCE in files.tensors:
        # Its length is free; the class builds it for ten minutes.
        shape = (1, files.tensors[SILENCE].shape[1], module.config.timbre_hidden_dim)
        module.silence_latent = torch.empty(shape, device="meta")
    assign({role: module}, files, lambda _, name: name, device=device, dtype=dtype)
    if role == "audio_tokenizer":
        restore_quantizer(module)
    return module


def _require_few_frames(frames: int, path: Path) -> None:
    if not 1 <= frames <= MOST_FRAMES:
        raise CheckpointInvalid(f"{path}: the encoded silence has {frames:,} frames, 1 ... {MOST_FRAMES:,} are read")


def _require_channels(silence: torch.Tensor, condition_encoder: Any, path: Path) -> None:
    channels = condition_encoder.config.timbre_hidden_dim
    if silence.shape[2] != channels:
        raise CheckpointInvalid(f"{path} has {silence.shape[2]} channels, but the configuration requires {channels}")


@contextmanager
def _configuration_errors(path: Path) -> Iterator[None]:
    """Report values that the modules' constructors cannot use as a fault of the file that contains them."""
    try:
        yield
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ZeroDivisionError, RuntimeError) as error:
        raise CheckpointInvalid(f"{path} does not describe a module that can be built: {error!r}") from error
