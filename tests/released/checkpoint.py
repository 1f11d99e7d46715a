"""A miniature checkpoint that the released package loads: the golden weights, or our own code where it brings none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from acestep.synthetic.language_model import TINY_LAYOUT
from tests.weights.miniature import change, copy_golden, write_language_model

CODE = Path(__file__).with_name("checkpoint_code")
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_checkpoints(root: Path, models: Path | None) -> Path:
    """All files that the package requires, below ``root``.

    Args:
        root: the package's project folder; must not exist.
        models: the package's own folder of models' code; ``None`` where it has none.
    """
    checkpoints = copy_golden(root / "checkpoints")
    for variant in ("turbo", "base"):
        folder = checkpoints / f"acestep-v15-{variant}"
        if models is not None:
            for file in (models / variant).glob("[!_]*.py"):
                shutil.copy(file, folder)
            names = (
                "configuration_acestep_v15.AceStepConfig",
                (f"modeling_acestep_v15_{variant}.AceStepConditionGenerationModel"),
            )
        else:
            for file in CODE.glob("*.py"):
                shutil.copy(file, folder)
            names = "configuration_miniature.MiniatureConfig", "modeling_miniature.MiniatureModel"
            (folder / "model.safetensors").unlink()
            torch.manual_seed(0)
            layer = torch.nn.Linear(8, 8)
            tensors = {f"decoder.layer.{name}": value.data for name, value in layer.named_parameters()}
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        change(folder / "config.json", auto_map=dict(zip(("AutoConfig", "AutoModel"), names, strict=True)))
        if models is None:
            change(folder / "config.json", model_type="acestep_miniature")
    change(checkpoints / "Qwen3-Embedding-0.6B" / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    # The package requires this file even if it is unused.
    _write_language_model(checkpoints / "acestep-5Hz-lm-1.7B")
    return checkpoints


def _write_language_model(folder: Path) -> None:
    write_language_model(folder, codes=range(TINY_LAYOUT.vocabulary_size - TINY_LAYOUT.code_base))
    change(folder / "config.json", architectures=["Qwen3ForCausalLM"], rope_theta=1e6)
    file = folder / "tokenizer.json"
    description = json.loads(file.read_text())
    # As many tokens as the model has rows: the package's masks are as long as the tokenizer.
    known = {*description["model"]["vocab"].values(), *(token["id"] for token in description["added_tokens"])}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    description["added_tokens"] += [
        {"id": row, "content": f"<|unused_{row}|>", **flags}
        for row in range(TINY_LAYOUT.vocabulary_size)
        if row not in known
    ]
    description["added_tokens"].sort(key=lambda token: token["id"])
    file.write_text(json.dumps(description))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>",
                "chat_template": CHAT,
            }
        )
    )
