"""The kind of a folder of weights, recognised by its content and not by its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from acestep.documents import DocumentError, read_document
from acestep.errors import CheckpointInvalid, CheckpointNotFound

Kind = Literal["official renderer", "diffusers renderer", "language model"]

VAE_FOLDER: Final = "vae"
"""Folder of the VAE in the official layout, beside the diffusion model's folder."""
TEXT_ENCODER_FOLDER: Final = "Qwen3-Embedding-0.6B"
"""The same for the text encoder."""
MODEL_INDEX: Final = "model_index.json"
"""The file at the root of a diffusers repository."""
CONFIG: Final = "config.json"


@dataclass(frozen=True, slots=True)
class OfficialRenderer:
    """A diffusion model as its authors publish it.

    Attributes:
        folder: transformer, condition encoder, audio tokenizer and detokenizer in one, and the silence latent.
        vae: beside it, or in the checkpoint folder.
        text_encoder: the same.
    """

    folder: Path
    vae: Path
    text_encoder: Path


@dataclass(frozen=True, slots=True)
class DiffusersRenderer:
    """A repository of diffusers: one folder for each model, and ``model_index.json``."""

    folder: Path


def locate(name: str, root: Path) -> Path | None:
    """The folder of a model: the name as a path, or ``root/name``; ``None`` when neither is there.

    Raises:
        CheckpointInvalid: the path exists and is not a folder.
    """
    for path in candidates(name, root):
        if path.is_dir():
            return path
        if path.is_symlink() and not path.exists():
            raise CheckpointInvalid(f"{path} is a broken symbolic link")
        if path.exists():
            raise CheckpointInvalid(f"{path} is a file: give the folder of the model")
    return None


def candidates(name: str, root: Path) -> Sequence[Path]:
    """Where a model is looked for, in this order."""
    return tuple(dict.fromkeys((Path(name), root / name)))


def find_renderer(folder: Path, root: Path) -> OfficialRenderer | DiffusersRenderer:
    """Recognise a diffusion model.

    Args:
        folder: the folder that was given.
        root: folder that may also contain the official layout's VAE and text encoder.

    Raises:
        CheckpointInvalid: the folder is something else, or cannot be read.
        CheckpointNotFound: the official layout lacks its VAE or its text encoder.
    """
    match kind_of(folder):
        case "diffusers renderer":
            return DiffusersRenderer(folder)
        case "official renderer":
            return OfficialRenderer(
                folder,
                vae=_beside(folder, root, VAE_FOLDER),
                text_encoder=_beside(folder, root, TEXT_ENCODER_FOLDER),
            )
        case "language model":
            raise CheckpointInvalid(f"{folder} is a language model: give it as `lm`")
    raise _unknown(folder, "a diffusion model")


def require_language_model_folder(folder: Path) -> None:
    """Check that a folder contains a language model.

    Raises:
        CheckpointInvalid: it is something else, or cannot be read.
    """
    kind = kind_of(folder)
    if kind is None:
        raise _unknown(folder, "a language model")
    if kind != "language model":
        raise CheckpointInvalid(f"{folder} is a diffusion model: give it as `dit`")


def kind_of(folder: Path) -> Kind | None:
    """The kind of a folder; ``None`` if it is none of the known kinds.

    Raises:
        CheckpointInvalid: a configuration cannot be read.
    """
    if (folder / MODEL_INDEX).exists():
        index = read_json(folder / MODEL_INDEX)
        return "diffusers renderer" if index.get("_class_name") == "AceStepPipeline" else None
    if not (folder / CONFIG).exists():
        return None
    config = read_json(folder / CONFIG)
    if config.get("model_type") == "acestep":
        return "official renderer"
    return "language model" if config.get("model_type") == "qwen3" else None


def read_json(path: Path) -> dict[str, Any]:
    """An object in a JSON file.

    Raises:
        CheckpointInvalid: the file does not exist, is not JSON, or does not contain an object.
    """
    try:
        value = read_document(path)
    except DocumentError as error:
        raise CheckpointInvalid(str(error)) from error
    if not isinstance(value, dict):
        raise CheckpointInvalid(f"{path} does not contain a JSON object")
    return value


def _beside(folder: Path, root: Path, name: str) -> Path:
    places = tuple(dict.fromkeys((folder.absolute().parent / name, (root / name).absolute())))
    for place in places:
        if (place / CONFIG).exists():
            return place
    looked = " and ".join(map(str, places))
    raise CheckpointNotFound(
        f"{folder} needs the folder {name}: looked for {looked}",
        "It is part of acestep-v15-turbo",
        model="acestep-v15-turbo",
    )


def _unknown(folder: Path, wanted: str) -> CheckpointInvalid:
    inside = sorted(path.name for path in folder.iterdir() if path.is_dir() and kind_of(path) is not None)
    if inside:
        return CheckpointInvalid(f"{folder} contains several models: name one of {', '.join(inside)}")
    return CheckpointInvalid(
        f"{folder} is not {wanted}: it has neither {MODEL_INDEX} (diffusers) nor a {CONFIG} with a known model type "
        f"(official layout)"
    )
