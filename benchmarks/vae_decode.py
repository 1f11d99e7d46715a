"""What does compiling the VAE's decoder gain, and how much memory does a tile take?

    python -m benchmarks.vae_decode                                           # the tiny model, CPU
    python -m benchmarks.vae_decode --device cuda --dit acestep-v15-turbo     # true size, GPU

One tile is decoded eagerly and compiled, each way in turn on the same weights: for any length (`dynamic`), for one
length (`static`), and with convolutions kept in the layout they have (`same layout`). Compiling includes the first
run. Memory is what a tile takes above the weights, per latent frame, beside what the choice of tile lengths expects.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any, Final

import torch

from acestep.devices import default_dtype
from acestep.renderer.decode_fallbacks import decode_bytes_per_frame
from acestep.renderer.preparation import fold_weight_norm
from acestep.synthetic.renderer import RENDERER_CONFIGS, build_renderer_models
from benchmarks.arguments import available_device, output_file, whole_number
from benchmarks.environment import environment, write_result

SAME_LAYOUT: Final = {"layout_optimization": False}
WAYS: Final[dict[str, dict[str, Any] | None]] = {
    "eager": None,
    "dynamic": {"dynamic": True},
    "static": {"dynamic": False},
    "dynamic, same layout": {"dynamic": True, "options": SAME_LAYOUT},
    "static, same layout": {"dynamic": False, "options": SAME_LAYOUT},
}
REPETITIONS: Final = 9


def main() -> None:
    """Print a row per way and tile length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=available_device, default="auto")
    parser.add_argument(
        "--dit",
        choices=RENDERER_CONFIGS,
        default="acestep-v15-tiny",
        metavar="NAME",
        help="diffusion model whose VAE is decoded with",
    )
    parser.add_argument(
        "--tiles", type=whole_number, nargs="+", default=[512, 256], help="tile lengths in latent frames"
    )
    parser.add_argument("--output", type=output_file, help="write the result as JSON")
    options = parser.parse_args()
    device = options.device
    models = build_renderer_models(options.dit, device=device, dtype=default_dtype(device))
    vae = models.vae
    fold_weight_norm(vae)
    expected = decode_bytes_per_frame(vae.config.decoder_channels, models.dtype)
    channels = vae.config.decoder_input_channels

    rows = []
    print(f"{'way':24}{'tile':>6}{'first s':>10}{'ms':>10}{'KiB a frame':>14}{'expected':>10}")
    for way, compiling in WAYS.items():
        torch._dynamo.reset()
        decode = vae.decoder if compiling is None else torch.compile(vae.decoder, fullgraph=True, **compiling)
        for length in options.tiles:
            latents = torch.randn(1, channels, length, device=device, dtype=models.dtype)
            first, milliseconds, peak = measured(decode, latents)
            rows.append(
                {
                    "way": way,
                    "tile_length": length,
                    "first_seconds": first,
                    "milliseconds": milliseconds,
                    "bytes_per_frame": None if peak is None else peak / length,
                    "expected_bytes_per_frame": expected,
                }
            )
            memory = f"{'-' if peak is None else round(peak / length / 1024):>14}{expected / 1024:>10.0f}"
            print(f"{way:24}{length:>6}{first:>10.2f}{milliseconds:>10.2f}{memory}", flush=True)
    write_result(options.output, {"environment": environment(), "rows": rows})


@torch.inference_mode()
def measured(decode: Callable[[torch.Tensor], torch.Tensor], latents: torch.Tensor) -> tuple[float, float, int | None]:
    """Seconds of the first run, median milliseconds of later ones, and the most bytes that one takes on CUDA."""
    on_cuda = latents.is_cuda

    def once() -> float:
        if on_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        decode(latents)
        if on_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    first = once()
    milliseconds = median(once() for _ in range(REPETITIONS)) * 1e3
    if not on_cuda:
        return first, milliseconds, None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    once()
    return first, milliseconds, torch.cuda.max_memory_allocated() - before


if __name__ == "__main__":
    main()
