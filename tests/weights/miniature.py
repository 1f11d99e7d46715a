"""Checkpoints on disk for the tests: the golden renderer, and a tiny language model as its authors would publish it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from acestep.synthetic.language_model import TINY_LAYOUT, build_language_model
from acestep.synthetic.tokenizer import build_tokenizer

GOLDEN_CHECKPOINTS = Path(__file__).parent.parent / "golden" / "checkpoint" / "checkpoints"
LANGUAGE_MODEL = "acestep-5Hz-lm-0.6B-miniature"


def copy_golden(target: Path) -> Path:
    """The golden checkpoints in a folder that a test may damage."""
    # Links are followed: a test writes to what it copied.
    return Path(shutil.copytree(GOLDEN_CHECKPOINTS, target))


def rewrite(file: Path, tensors: Mapping[str, torch.Tensor | None]) -> None:
    """Replace, add or (``None``) drop tensors of a safetensors file."""
    state = load_file(file)
    for name, tensor in tensors.items():
        if tensor is None:
            del state[name]
        else:
            state[name] = tensor
    save_file(state, file)


def change(file: Path, **values: object) -> None:
    """Set values of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def shard(file: Path, count: int) -> list[Path]:
    """Split a safetensors file the way transformers names shards."""
    state = load_file(file)
    names = sorted(state)
    shards, weight_map = [], {}
    for number in range(count):
        path = file.with_name(f"{file.stem}-{number + 1:05}-of-{count:05}.safetensors")
        part = {name: state[name] for name in names[number::count]}
        save_file(part, path)
        weight_map |= dict.fromkeys(part, path.name)
        shards.append(path)
    index = {"metadata": {}, "weight_map": weight_map}
    file.with_name(f"{file.name}.index.json").write_text(json.dumps(index))
    file.unlink()
    return shards


def write_language_model(folder: Path, *, prefix: str = "", codes: Iterable[int] = range(65_535)) -> Path:
    """The tiny language model in files, with the audio codes among the tokenizer's added tokens.

    Args:
        folder: to make.
        prefix: of the tensors' names.
        codes: that the tokenizer lists, in this order of ids.
    """
    folder.mkdir(parents=True)
    body = build_language_model("acestep-5Hz-lm-tiny", device=torch.device("cpu"), dtype=torch.float32).body
    save_file({prefix + name: tensor for name, tensor in body.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(body.config.to_json_string(use_diff=False))
    description = json.loads(build_tokenizer(TINY_LAYOUT).to_str())
    description["added_tokens"] += code_tokens(TINY_LAYOUT.code_base, codes)
    (folder / "tokenizer.json").write_text(json.dumps(description))
    return folder


def code_tokens(base: int, codes: Iterable[int]) -> list[dict[str, object]]:
    """Audio codes in the form in which a tokenizer file lists added tokens."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return [
        {"id": base + position, "content": f"<|audio_code_{code}|>", **flags} for position, code in enumerate(codes)
    ]
