"""How fast is a song without the language model, and how close to the limits of the device?

    python -m benchmarks.render                                                    # tiny model, CPU
    python -m benchmarks.render --device cuda --weights synthetic --duration 30 240 --batch-size 1 4

The same song in three forms on the same weights, one after the other in one process: diffusers' own pipeline, this
engine launch by launch (`ACESTEP_RENDERER_FUSED=0`), and this engine by default. Songs of both engines are traced at
detail `step`; steps and tiles are medians of their spans, so of the device's clock, a tile's as if it had 512 latent
frames. Wall time is the median of songs that follow two others, without saving; saving is timed by itself.

The floor of a row is the larger of two times: its operations (`torch.utils.flop_counter`) at the rate of a large matrix
product, and the weights, read once, at the rate of a large copy; share is the floor over the time taken. Both rates are
measured first. Operations are those of the matrix products and convolutions; attention, a tenth of them at most, is
left out.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
from diffusers import AceStepPipeline, FlowMatchEulerDiscreteScheduler
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedTokenizerFast

from acestep.checkpoints import DEFAULT_DIT, TINY_DIT, Models, ModelSelection, load_models
from acestep.errors import AceStepError
from acestep.inference import MusicPipeline, generate_music
from acestep.offloading import stored_bytes
from acestep.renderer.renderer import Renderer
from acestep.types import GenerationRequest, SongMetadata
from acestep_otel import semconv
from acestep_otel.instrumentor import AceStepInstrumentor
from acestep_otel.profiler.flags import in_flags
from benchmarks.arguments import available_device, output_file, whole_number
from benchmarks.environment import environment, write_result
from benchmarks.workload import CAPTION, LYRICS

DIFFUSERS: Final = "diffusers"
PLAIN: Final = "plain"
FORMS: Final = (DIFFUSERS, PLAIN, "default")
REPETITIONS: Final = 5
STEPS: Final = 8
TILE: Final = 512
_MATRIX: Final = 8_192
_COPIED_BYTES: Final = 2**32


def main() -> None:
    """Print a row per form, duration and number of songs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=available_device, default="auto")
    parser.add_argument("--weights", choices=["tiny", "synthetic"], default="tiny")
    parser.add_argument("--dit", default=DEFAULT_DIT, help="diffusion model, with --weights synthetic")
    parser.add_argument("--duration", type=whole_number, nargs="+", default=[30], help="seconds of a song")
    parser.add_argument("--batch-size", type=whole_number, nargs="+", default=[1], help="songs together")
    parser.add_argument("--no-diffusers", action="store_true", help="leave out diffusers' own pipeline")
    parser.add_argument("--output", type=output_file, help="write the result as JSON")
    options = parser.parse_args()
    dit = TINY_DIT if options.weights == "tiny" else options.dit
    start = time.perf_counter()
    try:
        models = load_models(ModelSelection(dit=dit, lm=None, weights="synthetic", device=str(options.device)))
    except AceStepError as error:
        raise SystemExit(f"error: {in_flags(error)}") from None
    loaded = time.perf_counter() - start
    with torch.inference_mode():
        device = ceilings(models)
    print(", ".join(f"{name} {value:.3g}" for name, value in device.items()))
    rows: list[dict[str, Any]] = []
    titles = ("songs", "s", "wall ms", "step ms", "floor", "share", "tile ms", "floor", "share", "save s")
    print(f"{'form':12}" + "".join(f"{title:>9}" for title in titles))
    # The default form last: it stores the VAE's weights in another order.
    for form in FORMS[options.no_diffusers :]:
        for duration in options.duration:
            for songs in options.batch_size:
                row = measured(models, form, song(duration, songs), device)
                rows.append({"form": form, "duration": duration, "songs": songs, **row})
                print(shown(rows[-1]), flush=True)
                # Written after each row, so that an interruption loses nothing.
                result = {"environment": environment(), "model_load_seconds": loaded, "device": device, "rows": rows}
                write_result(options.output, result)


def shown(row: dict[str, Any]) -> str:
    """A row of the printed table; a dash where a form has no such figure."""

    def figure(name: str, width: int, digits: int = 2) -> str:
        value = row.get(name)
        return f"{'-':>{width}}" if value is None else f"{value:>{width}.{digits}f}"

    def share(stage: str) -> str:
        return f"{row[f'{stage}_floor_ms'] / row[f'{stage}_ms']:>9.0%}" if f"{stage}_ms" in row else f"{'-':>9}"

    stages = "".join(
        figure(f"{stage}_ms", 9) + figure(f"{stage}_floor_ms", 9) + share(stage) for stage in ("step", "tile")
    )
    return (
        f"{row['form']:12}{row['songs']:>9}{row['duration']:>9}{figure('wall_ms', 9, 1)}"
        f"{stages}{figure('save_seconds', 9)}"
    )


def song(duration: int, songs: int) -> GenerationRequest:
    """Songs with everything given, so that no language model is needed."""
    return GenerationRequest(
        caption=CAPTION,
        lyrics=LYRICS,
        metadata=SongMetadata(bpm=112, keyscale="A minor", timesignature="4", language="en"),
        duration=duration,
        batch_size=songs,
        seeds=(42,),
        inference_steps=STEPS,
        thinking=False,
    )


def measured(models: Models, form: str, request: GenerationRequest, device: dict[str, float]) -> dict[str, Any]:
    """The figures of one form for one kind of song."""
    if form == DIFFUSERS:
        return {"wall_ms": wall(pipeline_song(models, request)) * 1e3}
    renderer = models.renderer
    if form == PLAIN:
        models = replace(models, renderer=Renderer(renderer.models, renderer.offloader, fuse=False))
    figures = traced_song(models, request)
    figures |= {"step_floor_ms": step_floor(models, request, device), "tile_floor_ms": tile_floor(models, device)}
    if form != PLAIN:
        figures["save_seconds"] = saving(models, request)
    return figures


def traced_song(models: Models, request: GenerationRequest) -> dict[str, Any]:
    """Wall time of a traced song, its steps and tiles, and the memory that it takes above the weights."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = AceStepInstrumentor()
    instrumentor.instrument(tracer_provider=provider, detail="step")
    try:
        start = time.perf_counter()
        generate_music(models, request)
        first = time.perf_counter() - start
        on_cuda = models.device.type == "cuda"
        before = torch.cuda.memory_allocated() if on_cuda else 0
        if on_cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = wall(lambda: generate_music(models, request))
        instrumentor.flush()
    finally:
        instrumentor.uninstrument()
    # The first songs include what is created once.
    spans = exporter.get_finished_spans()
    steps = [_milliseconds(span) for span in spans if span.name == semconv.DIT_STEP]
    tiles = [
        _milliseconds(span) * TILE / (span.attributes or {})[semconv.VAE_TILE_FRAMES]
        for span in spans
        if span.name == semconv.VAE_TILE
    ]
    return {
        "first_seconds": first,
        "wall_ms": seconds * 1e3,
        "step_ms": median(steps),
        "tile_ms": median(tiles),
        "bytes_above_weights": torch.cuda.max_memory_allocated() - before if on_cuda else None,
        "bytes_reserved": torch.cuda.memory_reserved() if on_cuda else None,
    }


def _milliseconds(span: ReadableSpan) -> float:
    return ((span.end_time or 0) - (span.start_time or 0)) / 1e6


def pipeline_song(models: Models, request: GenerationRequest) -> Callable[[], object]:
    """The same song from diffusers' pipeline on the same models."""
    loaded = models.renderer.models
    pipeline = AceStepPipeline(
        vae=loaded.vae,
        text_encoder=loaded.text_encoder,
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=loaded.text_tokenizer, pad_token="<|endoftext|>"),
        transformer=loaded.transformer,
        condition_encoder=loaded.condition_encoder,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
        audio_tokenizer=loaded.audio_tokenizer,
        audio_token_detokenizer=loaded.audio_token_detokenizer,
    )
    pipeline.set_progress_bar_config(disable=True)

    def run() -> object:
        return pipeline(
            prompt=[request.caption] * request.batch_size,
            lyrics=[request.lyrics] * request.batch_size,
            audio_duration=float(request.duration or 0),
            num_inference_steps=STEPS,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(42),
            output_type="np",
        )

    return run


def wall(run: Callable[[], object]) -> float:
    """Median seconds of a run that follows two others, until its result is on the host."""
    for _ in range(2):
        run()
    gc.collect()
    taken = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return median(taken)


def saving(models: Models, request: GenerationRequest) -> float:
    """Median seconds that the songs of one request take to be written as FLAC."""
    pipeline = MusicPipeline(models)
    songs = generate_music(models, request).songs
    with tempfile.TemporaryDirectory() as folder:
        return wall(lambda: pipeline.save_songs(songs, Path(folder), "flac"))


def ceilings(models: Models) -> dict[str, float]:
    """What the device does at most: operations per second of a matrix product, bytes per second of a copy."""
    device, dtype = models.device, models.renderer.models.dtype
    size = _MATRIX if device.type == "cuda" else _MATRIX // 8
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    source = torch.empty(_COPIED_BYTES // (1 if device.type == "cuda" else 32), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return {
        "operations_per_second": 2 * size**3 / device_seconds(lambda: matrix @ matrix, device),
        "bytes_per_second": 2 * source.numel() / device_seconds(lambda: target.copy_(source), device),
    }


def device_seconds(run: Callable[[], object], device: torch.device) -> float:
    """Median seconds until the device has run something."""

    def once() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()
    return median(once() for _ in range(2 * REPETITIONS))


@torch.inference_mode()
def step_floor(models: Models, request: GenerationRequest, device: dict[str, float]) -> float:
    """Milliseconds that a step takes at least."""
    transformer = models.renderer.models.transformer
    config, options = transformer.config, {"device": models.device, "dtype": models.renderer.models.dtype}
    songs, frames = request.batch_size, int((request.duration or 0) * 25)
    times = torch.ones(songs, **options)
    with FlopCounterMode(display=False, custom_mapping=_NO_ATTENTION) as counter:
        transformer(
            hidden_states=torch.zeros(songs, frames, config.audio_acoustic_hidden_dim, **options),
            timestep=times,
            timestep_r=times,
            encoder_hidden_states=torch.zeros(songs, 256, config.encoder_hidden_size or config.hidden_size, **options),
            context_latents=torch.zeros(
                songs, frames, config.in_channels - config.audio_acoustic_hidden_dim, **options
            ),
        )
    return _floor(counter, stored_bytes(transformer), device)


@torch.inference_mode()
def tile_floor(models: Models, device: dict[str, float]) -> float:
    """Milliseconds that a tile of ``TILE`` frames takes at least."""
    vae = models.renderer.models.vae
    latents = torch.zeros(1, vae.config.decoder_input_channels, TILE, device=vae.device, dtype=vae.dtype)
    with FlopCounterMode(display=False) as counter:
        vae.decode(latents)
    return _floor(counter, stored_bytes(vae.decoder), device)


def _nothing(*_: Any, **__: Any) -> int:
    return 0


# The counter does not support attention with fewer key heads than query heads.
_NO_ATTENTION: Final = dict.fromkeys(
    (
        torch.ops.aten._scaled_dot_product_efficient_attention,
        torch.ops.aten._scaled_dot_product_flash_attention,
        torch.ops.aten._scaled_dot_product_cudnn_attention,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
    ),
    _nothing,
)


def _floor(counter: FlopCounterMode, weight_bytes: int, device: dict[str, float]) -> float:
    operations = counter.get_total_flops() / device["operations_per_second"]
    return max(operations, weight_bytes / device["bytes_per_second"]) * 1e3


if __name__ == "__main__":
    main()
