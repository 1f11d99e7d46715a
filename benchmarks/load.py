"""What does loading a checkpoint cost? Seconds and host memory, for one in the official layout that it writes.

    python -m benchmarks.load --output benchmarks/results/load.json

The weights are random and of the true size. Each row is a separate process, which reports the peak of its resident
memory above what it had before loading. What exceeds the weights themselves is the cost of reading them. The last row
reads the same file mapped as a whole, as a loop over ``safetensors`` does. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from acestep.checkpoints import ModelSelection, load_renderer_models
from acestep.renderer.models import RendererModels
from acestep.synthetic.renderer import build_renderer_models
from acestep.weights import tensor_files
from acestep.weights.layout import TEXT_ENCODER_FOLDER, VAE_FOLDER
from acestep.weights.official_format import ENCODER_SIZES, PREFIXES, official_name
from benchmarks.arguments import output_file
from benchmarks.environment import environment, write_result

NAME = "acestep-v15-turbo"
CPU = torch.device("cpu")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
ROLES = (*PREFIXES, "vae", "text_encoder")
GIB = 2**30
ROWS = (
    ("bfloat16, as stored; disk", {"dtype": "bfloat16", "from_disk": True}),
    ("bfloat16, as stored; page cache", {"dtype": "bfloat16"}),
    ("float32; page cache", {"dtype": "float32"}),
    ("bfloat16, mapped as a whole; page cache", {"dtype": "bfloat16", "whole": True}),
)


def write_checkpoint(models: RendererModels, root: Path) -> None:
    """Write models as their authors publish them."""
    folder, vae, text_encoder = (root / name for name in (NAME, VAE_FOLDER, TEXT_ENCODER_FOLDER))
    for path in (folder, vae, text_encoder):
        path.mkdir()
    modules = {role: getattr(models, role) for role in PREFIXES}
    official = {
        name: tensor
        for role, module in modules.items()
        for ours, tensor in module.state_dict().items()
        if (name := official_name(role, ours)) is not None
    }
    save_file(official, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(official_config(modules)))
    torch.save(models.condition_encoder.silence_latent.transpose(1, 2).contiguous(), folder / "silence_latent.pt")
    models.vae.save_config(vae)
    save_file(models.vae.state_dict(), vae / "diffusion_pytorch_model.safetensors")
    save_file(models.text_encoder.state_dict(), text_encoder / "model.safetensors")
    (text_encoder / "config.json").write_text(models.text_encoder.config.to_json_string(use_diff=False))
    models.text_tokenizer.save(str(text_encoder / "tokenizer.json"))


def official_config(modules: Mapping[str, Any]) -> dict[str, Any]:
    """The one configuration that describes the four modules."""
    merged: dict[str, Any] = {"model_type": "acestep"}
    for role in reversed(PREFIXES):
        merged |= {key: value for key, value in modules[role].config.items() if not key.startswith("_")}
    encoder = modules["condition_encoder"].config
    return merged | {f"encoder_{size}": encoder[size] for size in ENCODER_SIZES}


def measure(root: Path, dtype: str, *, whole: bool) -> dict[str, float]:
    """Load once, in this process."""
    if whole:
        tensor_files.MAPPED_BYTES = 2**62
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    start, worked = time.perf_counter(), time.process_time()
    models = load_renderer_models(ModelSelection(dit=NAME, checkpoint_root=root), CPU, DTYPES[dtype])
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    peak = resident("VmHWM") - before
    weights = sum(tensor.nbytes for role in ROLES for tensor in tensors(getattr(models, role)))
    return {
        "seconds": seconds,
        "CPU seconds": worked,
        "weights (GiB)": weights / GIB,
        "peak of resident memory (GiB)": peak / GIB,
        "peak above the weights (GiB)": (peak - weights) / GIB,
    }


def tensors(module: torch.nn.Module) -> Iterable[torch.Tensor]:
    """Bytes of everything that a module keeps in memory."""
    yield from module.parameters()
    yield from module.buffers()


def resident(field: str) -> int:
    """Bytes of this process's resident memory: ``VmRSS`` now, ``VmHWM`` at its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def evict(root: Path) -> None:
    """Drop the checkpoint from the page cache."""
    os.sync()
    for path in root.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measured_apart(root: Path, *, dtype: str, from_disk: bool = False, whole: bool = False) -> dict[str, Any]:
    """Load in a separate process."""
    if from_disk:
        evict(root)
    command = [sys.executable, "-m", "benchmarks.load", "--measure", str(root), "--dtype", dtype]
    done = subprocess.run([*command, *(["--whole"] if whole else [])], check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Write the checkpoint, load it once per row, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where 6 GB are written for the time of the run")
    parser.add_argument("--output", type=output_file, help="write the result as JSON")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help=argparse.SUPPRESS)
    parser.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(options.measure, options.dtype, whole=options.whole)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder)
        write_checkpoint(build_renderer_models(NAME, device=CPU, dtype=torch.bfloat16), root)
        rows = [{"what": what, **measured_apart(root, **settings)} for what, settings in ROWS]
    for row in rows:
        figures = ", ".join(f"{name} {value:.2f}" for name, value in row.items() if name != "what")
        print(f"{row['what']}: {figures}")
    write_result(options.output, {"environment": environment(), "checkpoint": NAME, "rows": rows})


if __name__ == "__main__":
    main()
