"""An official diffusion model as a repository that diffusers' own pipeline loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Final

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors import SafetensorError
from safetensors.torch import save_file

from acestep.weights.layout import CONFIG, MODEL_INDEX, OfficialRenderer
from acestep.weights.meta_modules import match
from acestep.weights.official_format import SILENCE, official_name
from acestep.weights.renderer import DIFFUSERS_STEM, OFFICIAL_STEM, SILENCE_FILE, official_modules, read_silence
from acestep.weights.tensor_files import TensorFiles

_COMPONENTS: Final = {
    "transformer": ("diffusers", "AceStepTransformer1DModel"),
    "condition_encoder": ("ace_step", "AceStepConditionEncoder"),
    "audio_tokenizer": ("ace_step", "AceStepAudioTokenizer"),
    "audio_token_detokenizer": ("ace_step", "AceStepAudioTokenDetokenizer"),
    "vae": ("diffusers", "AutoencoderOobleck"),
    "text_encoder": ("transformers", "Qwen3Model"),
    "tokenizer": ("transformers", "Qwen2Tokenizer"),
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
}
"""What diffusers' pipeline looks for: folder, library and class."""
_TOKENIZER_FILES: Final = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja",
)  # fmt: skip


def convert(source: OfficialRenderer, target: Path) -> None:
    """Write the repository. Every tensor keeps its values and its number type.

    Args:
        source: of ``acestep.weights.layout.find_renderer``.
        target: folder to create; it appears only when it is complete.

    Raises:
        CheckpointInvalid: the source is corrupt, or does not fit its configuration.
        OSError: the target exists, or cannot be written.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists: give the name of a new folder")
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write_modules(source.folder, partial)
        _copy(source.vae, partial / "vae", (CONFIG,), DIFFUSERS_STEM)
        _copy(source.text_encoder, partial / "text_encoder", (CONFIG,), OFFICIAL_STEM)
        _copy(source.text_encoder, partial / "tokenizer", _TOKENIZER_FILES)
        # The pipeline computes its own times and needs a scheduler that does not change them.
        FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0).save_pretrained(partial / "scheduler")
        index = {"_class_name": "AceStepPipeline", "_diffusers_version": diffusers.__version__, **_COMPONENTS}
        (partial / MODEL_INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_modules(folder: Path, target: Path) -> None:
    modules = official_modules(folder)
    files = TensorFiles.open(folder, OFFICIAL_STEM)
    slots = match(modules, files, official_name)
    for role, module in modules.items():
        module.save_config(target / role)
        names = {stored: slot.name for stored, slot in slots.items() if slot.role == role}
        state = {names[stored]: tensor for stored, tensor in files.mapped(names).items()}
        if role == "condition_encoder":
            state[SILENCE] = read_silence(folder / SILENCE_FILE)
        _save(state, target / role / f"{DIFFUSERS_STEM}.safetensors")


def _save(state: dict[str, torch.Tensor], path: Path) -> None:
    try:
        save_file(state, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from error


def _copy(source: Path, target: Path, names: tuple[str, ...], stem: str | None = None) -> None:
    """Copy files by name, and the weights of a stem; no other file, such as code."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        if path.name in names or (stem is not None and path.name.startswith(stem) and ".safetensors" in path.name):
            shutil.copyfile(path, target / path.name)
