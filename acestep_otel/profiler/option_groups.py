"""The options of the command line, by group, in the order of ``--help``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

import click
from cloup import option, option_group

from acestep.types import BackendName
from acestep_otel.profiler.dotenv import VARIABLES
from acestep_otel.profiler.numbers import Number, WholeNumber
from acestep_otel.profiler.options import DEFAULTS, Mode
from acestep_otel.profiler.subcommands import CHECKPOINT_DIR

MOST_SECONDS: Final = 604_800.0
"""A week: the longest that anything is waited for."""

_FROM_EXAMPLE: Final = "from example"
_FILE: Final = click.Path(path_type=Path)
_FOLDER: Final = click.Path(path_type=Path, file_okay=False)
Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_GROUPS: Final = (
    option_group(
        "Device & Backend",
        option(
            "--device",
            default=DEFAULTS.device,
            envvar=VARIABLES["device"],
            help="Device: auto, cuda, cuda:N, mps or cpu. auto selects the first of CUDA, MPS and CPU.",
        ),
        option(
            "--lm-backend",
            metavar=f"[{'|'.join(get_args(BackendName))}]",
            default=DEFAULTS.lm_backend,
            envvar=VARIABLES["lm_backend"],
            help="Language-model backend. auto: mlx on MPS if installed, otherwise pt.",
        ),
    ),
    option_group(
        "Model Paths",
        option(
            "--config-path",
            default=DEFAULTS.config_path,
            envvar=VARIABLES["config_path"],
            help="Diffusion model (DiT): a name or a path.",
        ),
        option(
            "--lm-model",
            default=DEFAULTS.lm_model,
            envvar=VARIABLES["lm_model"],
            help="Language model: a name or a path.",
        ),
    ),
    option_group(
        "Hardware Options",
        option("--offload-to-cpu", is_flag=True, help="Keep models in host memory while they are not in use."),
        option("--offload-dit-to-cpu", is_flag=True, help="The same for the DiT."),
        option(
            "--quantization",
            type=click.Choice(["int8_weight_only", "fp8_weight_only", "w8a8_dynamic"]),
            show_default="none",
            help="Quantization of the DiT's weights. Quantized models are compiled.",
        ),
    ),
    option_group(
        "Generation Parameters",
        option("--duration", type=Number(), show_default=_FROM_EXAMPLE, help="Audio duration in seconds, 10 to 600."),
        option("--batch-size", type=WholeNumber(), show_default=_FROM_EXAMPLE, help="Songs per request, 1 to 8."),
        option("--inference-steps", type=WholeNumber(), show_default=_FROM_EXAMPLE, help="Denoising steps."),
        option(
            "--seed",
            type=WholeNumber(),
            show_default=_FROM_EXAMPLE,
            help="Seed of the first song; a negative value selects a random seed.",
        ),
        option(
            "--guidance-scale",
            type=Number(),
            default=DEFAULTS.guidance_scale,
            help="Guidance scale of the DiT; turbo models do not use it.",
        ),
    ),
    option_group(
        "LLM / CoT Parameters",
        option(
            "--thinking",
            is_flag=True,
            help="The language model reasons (chain of thought) and writes audio codes, which the DiT follows.",
        ),
        option("--use-cot-metas", is_flag=True, help="The language model decides tempo, key and time signature."),
        option("--use-cot-caption", is_flag=True, help="The language model rewrites the caption."),
        option("--use-cot-language", is_flag=True, help="The language model decides the language of the vocals."),
        option(
            "--use-constrained-decoding/--no-constrained-decoding",
            default=DEFAULTS.use_constrained_decoding,
            help="Constrain the metadata to its grammar.",
        ),
        option(
            "--lm-temperature",
            type=Number(),
            default=DEFAULTS.lm_temperature,
            help="Sampling temperature of the language model; 0 is greedy.",
        ),
        option(
            "--lm-cfg-scale",
            type=Number(),
            default=DEFAULTS.lm_cfg_scale,
            help="Guidance scale of the audio codes; 1 is off.",
        ),
    ),
    option_group(
        "Profiling Options",
        option("--mode", type=click.Choice(get_args(Mode)), default=DEFAULTS.mode, help="What to measure."),
        option("--no-warmup", is_flag=True, help="Measure the first run, compilation and first allocations included."),
        option("--detailed", is_flag=True, help="One more run under cProfile: the most expensive functions."),
        option("--llm-debug", is_flag=True, help="Tokens, throughput and gaps of each phase of the language model."),
        option("--benchmark-output", type=_FILE, show_default="none", help="Write the results to this JSON file."),
    ),
    option_group(
        "Tier-Test Options",
        option(
            "--tiers",
            type=WholeNumber(min=1, max=100_000),
            multiple=True,
            default=DEFAULTS.tiers,
            show_default=" ".join(map(str, DEFAULTS.tiers)),
            metavar="GB...",
            help="Card sizes to simulate, in GB.",
        ),
        option("--tier-with-lm", is_flag=True, help="Run the language model on tiers that have one."),
        option("--tier-skip-compile", is_flag=True, help="Compile only tiers that are quantized."),
        option(
            "--tier-boundary",
            is_flag=True,
            help="Also run each tier without quantization, and without quantization and offload.",
        ),
        option(
            "--tier-batch-boundary", is_flag=True, help="Run each tier with 1, 2, 4 and 8 songs until memory runs out."
        ),
    ),
    option_group(
        "Input Options",
        option(
            "--example", default=DEFAULTS.example, help="Example to generate: a file of examples/text2music, or a path."
        ),
        option(
            "--task-type",
            type=click.Choice(["text2music", "cover", "repaint", "lego", "extract", "complete"]),
            default=DEFAULTS.task_type,
            help="Task; all except text2music need --src-audio.",
        ),
        option("--reference-audio", type=_FILE, show_default="none", help="Recording whose timbre is transferred."),
        option(
            "--src-audio",
            type=_FILE,
            show_default="none",
            help="Source recording of a task, or input of --mode understand.",
        ),
        option("--sample-query", show_default="none", help="Description of a song, for --mode create_sample."),
        option("--instrumental", is_flag=True, help="Without vocals, for --mode create_sample."),
        option(
            "--audio-codes",
            show_default="none",
            help="Audio codes, for --mode understand: '12,7' or '<|audio_code_12|><|audio_code_7|>'.",
        ),
    ),
    option_group(
        "Sampler Options",
        option("--shift", type=Number(), show_default="3 for turbo, else 1", help="Timestep shift of the schedule."),
        option(
            "--timesteps",
            show_default="none",
            metavar="T,T,...",
            help="Decreasing flow times to evaluate, instead of steps and shift: 0.97,0.76,0.5,0.3,0.",
        ),
        option(
            "--cfg-interval-start",
            type=Number(),
            default=DEFAULTS.cfg_interval_start,
            help="Lowest flow time with guidance.",
        ),
        option(
            "--cfg-interval-end",
            type=Number(),
            default=DEFAULTS.cfg_interval_end,
            help="Highest flow time with guidance.",
        ),
        option("--use-adg", is_flag=True, help="Guide by angles (ADG) instead of projections (base and sft models)."),
        option(
            "--infer-method",
            type=click.Choice(["ode", "sde"]),
            default=DEFAULTS.infer_method,
            help="Follow the velocity, or predict the song and add new noise at every step.",
        ),
        option(
            "--sampler-mode",
            type=click.Choice(["euler", "heun"]),
            default=DEFAULTS.sampler_mode,
            help="Evaluations of the transformer per step: one, or two.",
        ),
        option(
            "--dcw/--no-dcw",
            default=None,
            show_default="on for turbo",
            help="Correct the latents in the wavelet domain after every step.",
        ),
        option(
            "--dcw-mode",
            type=click.Choice(["low", "high", "double", "pix"]),
            default=DEFAULTS.dcw_mode,
            help="Bands that are corrected.",
        ),
        option("--dcw-scaler", type=Number(), default=DEFAULTS.dcw_scaler, help="Strength of the correction."),
        option(
            "--dcw-high-scaler",
            type=Number(),
            default=DEFAULTS.dcw_high_scaler,
            help="Strength of the high band in mode double.",
        ),
        option(
            "--retake-seed",
            type=WholeNumber(),
            show_default="none",
            help="Seed of the noise that --retake-variance mixes in.",
        ),
        option(
            "--retake-variance",
            type=Number(),
            default=DEFAULTS.retake_variance,
            help="0 to 1: 0 gives the song of the seed, 1 that of the retake seed.",
        ),
        option(
            "--lm-top-k",
            type=WholeNumber(),
            default=DEFAULTS.lm_top_k,
            help="Keep the k most probable tokens; 0 is off.",
        ),
        option("--lm-top-p", type=Number(), default=DEFAULTS.lm_top_p, help="Nucleus sampling; 1 is off."),
        option(
            "--lm-negative-prompt",
            default=DEFAULTS.lm_negative_prompt,
            help="Text of the unconditional prompt in place of caption and lyrics.",
        ),
    ),
    option_group(
        "Task Options",
        option(
            "--repainting-start",
            type=Number(),
            default=DEFAULTS.repainting_start,
            metavar="SECONDS",
            help="Start of the window of repaint and lego; a negative value extends the song before its start.",
        ),
        option(
            "--repainting-end",
            type=Number(),
            show_default="end of the source",
            metavar="SECONDS",
            help="End of the window; a value beyond the source extends the song.",
        ),
        option(
            "--audio-cover-strength",
            type=Number(),
            default=DEFAULTS.audio_cover_strength,
            help="Share of the steps, 0 to 1, that follow the source (cover) or the codes; the rest follow the text.",
        ),
        option(
            "--cover-noise-strength",
            type=Number(),
            default=DEFAULTS.cover_noise_strength,
            help="0 starts from noise; the closer to 1, the closer the start is to the source.",
        ),
        option(
            "--repaint-mode",
            type=click.Choice(["conservative", "balanced", "aggressive"]),
            default=DEFAULTS.repaint_mode,
            help="How closely a repaint follows its source.",
        ),
        option(
            "--repaint-strength",
            type=Number(),
            default=DEFAULTS.repaint_strength,
            help="For mode balanced, 0 to 1; 0 is equal to conservative.",
        ),
        option(
            "--track",
            multiple=True,
            show_default="none",
            help="Track to add (lego, complete) or isolate (extract), for example vocals. complete accepts several.",
        ),
    ),
    option_group(
        "Measurement",
        option(
            "--repeat",
            type=WholeNumber(min=1, max=10_000),
            default=DEFAULTS.repeat,
            help="Runs of each benchmark cell: median, minimum, spread.",
        ),
        option(
            "--gpus",
            metavar="N,N,...|all|cpu:N",
            show_default="one device, in this process",
            help="Distribute a benchmark or a tier test over these GPUs, one process on each; cpu:N runs N on the CPU.",
        ),
        option(
            "--dit-device",
            show_default="as --device",
            help="Device of diffusion and VAE, if the language model uses another.",
        ),
        option(
            "--lm-device",
            show_default="as --device",
            help="Device of the language model; on a separate card it is not offloaded.",
        ),
        option(
            "--ray",
            metavar="ADDRESS|auto",
            show_default="none",
            help="Distribute a benchmark over the GPUs of a Ray cluster, an actor on each; auto: this host's cluster.",
        ),
        option(
            "--tier-duration",
            type=Number(),
            default=DEFAULTS.tier_duration,
            metavar="SECONDS",
            help="Duration of the song that each tier generates, 10 to 600; ACE-Step's own profiler uses 240 s.",
        ),
        option(
            "--tier-timeout",
            type=Number(min=0, max=MOST_SECONDS, min_open=True),
            default=DEFAULTS.tier_timeout,
            metavar="SECONDS",
            help="Time limit of a run of a tier test, loading included; then the process is killed.",
        ),
        option(
            "--torch-profile",
            is_flag=True,
            help="One more run under torch.profiler: a trace for Perfetto or chrome://tracing.",
        ),
        option(
            "--roofline",
            is_flag=True,
            help="Share of the device's peaks that each stage reached, and what limits it.",
        ),
    ),
    option_group(
        "Weights & Output",
        option("--tiny", is_flag=True, help="Tiny built-in models with random weights: no download, seconds on a CPU."),
        option(
            "--weights",
            type=click.Choice(["checkpoint", "synthetic"]),
            default=DEFAULTS.weights,
            help="synthetic: the named models at true size with random weights: real speed and memory, noise as audio.",
        ),
        CHECKPOINT_DIR,
        option("--download", is_flag=True, help="Download missing models; prints the size first."),
        option(
            "--lora",
            multiple=True,
            metavar="[NAME=]PATH[:SCALE]",
            show_default="none",
            help="LoRA, DoRA or LoKr adapter of the DiT, a safetensors file or its folder; may be repeated.",
        ),
        option("--output-dir", type=_FILE, default=DEFAULTS.output_dir, help="Folder for the songs."),
        option("--audio-format", default=DEFAULTS.audio_format, help="flac, wav, wav32, mp3, ogg or opus."),
        option("--report", type=_FILE, show_default="none", help="Write an HTML report."),
        option(
            "--songs-in-trace",
            is_flag=True,
            help="Put path, hash and type of the songs on the root span; the report plays them.",
        ),
        option(
            "--lyrics-token-limit",
            type=WholeNumber(),
            default=DEFAULTS.lyrics_token_limit,
            help="Maximum tokens of lyrics in the modes understand, create_sample and format_sample.",
        ),
        option("--no-progress", is_flag=True, help="Do not show progress bars."),
    ),
    option_group(
        "Tracing",
        option(
            "--detail",
            type=click.Choice(["off", "stage", "step", "token"]),
            show_default="step, or ACESTEP_OTEL_DETAIL",
            help="Depth of the span tree.",
        ),
        option("--trace-output", type=_FILE, show_default="none", help="Write the trace as OTLP JSON lines."),
        option(
            "--otlp-endpoint",
            show_default="none, or OTEL_EXPORTER_OTLP_ENDPOINT",
            help="OTLP endpoint for traces and metrics.",
        ),
        option(
            "--otlp-protocol",
            type=click.Choice(["grpc", "http/protobuf"]),
            show_default="grpc, or OTEL_EXPORTER_OTLP_PROTOCOL",
            help="OTLP protocol.",
        ),
        option(
            "--prometheus-port",
            type=WholeNumber(1, 65_535),
            show_default="none",
            help="Serve metrics for Prometheus to scrape, without a collector: http://localhost:PORT/metrics.",
        ),
    ),
)


def all_options(function: Decorated) -> Decorated:
    """Give a command every option."""
    for group in reversed(_GROUPS):
        function = group(function)
    return function
