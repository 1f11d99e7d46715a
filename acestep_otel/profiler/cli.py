"""The command line: options to a mode, errors to one line and an exit code.

Exit codes: 0 done; 1 the run failed; 2 wrong usage or set-up; 130 and 143 ended by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, get_args

import click
import cloup
from click.core import ParameterSource
from cloup import option, option_group

from acestep.documents import is_text, shown
from acestep.types import BackendName
from acestep_otel import __version__
from acestep_otel.errors import SetupError
from acestep_otel.profiler.dotenv import ENVIRONMENT_FILE, VARIABLES, FileDefaults, read_defaults
from acestep_otel.profiler.errors import RunFailed
from acestep_otel.profiler.numbers import Number, WholeNumber
from acestep_otel.profiler.options import DEFAULTS, Mode, Options, require_available
from acestep_otel.profiler.subcommands import CHECKPOINT_DIR, SUBCOMMANDS
from acestep_otel.profiler.terminal import echo, finish, prepare
from acestep_otel.sdk.variables import require_variables
from acestep_otel.shutdown import INTERRUPTED, exit_on_terminate

FAILED: Final = 1
"""Exit code of a run that did not end well."""
USAGE: Final = 2
"""Exit code of wrong usage or set-up."""

MOST_SECONDS: Final = 604_800.0
"""A week: the longest that anything is waited for."""

_FILE_DEFAULTS: Final = f"{__name__}.file_defaults"
_WORDS: Final = {
    "device": (re.compile(r"auto|cuda(:[0-9]{1,4})?|mps|cpu"), "auto, cuda, cuda:N, mps or cpu"),
    "lm_backend": (re.compile(r"auto|vllm|pt|mlx"), "auto, vllm, pt or mlx"),
}
"""What may be said, where that is known without loading anything."""
_FROM_EXAMPLE: Final = "from example"
_FILE: Final = click.Path(path_type=Path)
_FOLDER: Final = click.Path(path_type=Path, file_okay=False)


class _Command(cloup.Group):
    """A command that also has subcommands.

    Its ``--tiers`` takes several values after one flag, which click cannot express, and ``.env`` holds defaults.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the flag before each of its values, then parse as usual."""
        require_text(args)
        defaults = read_defaults(ENVIRONMENT_FILE)
        ctx.default_map = dict(defaults.values)
        ctx.meta[_FILE_DEFAULTS] = defaults
        return super().parse_args(ctx, list(repeat_flag("--tiers", args)))


def require_text(arguments: Sequence[str]) -> None:
    """Refuse an argument with bytes outside UTF-8: no result, page or span could hold it.

    Raises:
        SetupError: naming it, and the option before it.
    """
    for position, argument in enumerate(arguments):
        if not is_text(argument):
            before = arguments[position - 1] if position and arguments[position - 1].startswith("--") else ""
            raise SetupError(f"{before} {shown(argument)[:200]} is not UTF-8 text: rename or retype it".strip())


def repeat_flag(flag: str, arguments: Sequence[str]) -> Iterator[str]:
    """Turn ``--flag 1 2 3`` into ``--flag 1 --flag 2 --flag 3``; everything else stays as it is."""
    values_follow = False
    for position, argument in enumerate(arguments):
        if argument.startswith("-"):
            values_follow = argument == flag
            yield argument
        elif values_follow and arguments[position - 1] != flag:
            yield from (flag, argument)
        else:
            yield argument


# The first character keeps click from joining the lines.
_EXAMPLES: Final = """\b
Examples:
  Nothing downloaded yet, seconds on a CPU:
    acestep-otel --tiny --thinking --report report.html
  The released models, fetched once (several GB):
    acestep-otel --download --thinking --llm-debug
  Real speed and memory without weights:
    acestep-otel --weights synthetic --report report.html
  Before against after, or one card against another:
    acestep-otel --mode benchmark --benchmark-output a.json
    acestep-otel compare a.json b.json
  Traces and metrics to a collector, checked first:
    acestep-otel doctor --otlp-endpoint http://localhost:4317
    acestep-otel --tiny --otlp-endpoint http://localhost:4317
"""


@cloup.group(
    cls=_Command,
    epilog=_EXAMPLES,
    invoke_without_command=True,
    subcommand_metavar="[COMMAND ...]",
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 120},
    formatter_settings={"col1_max_width": 36},
)
@cloup.version_option(__version__, prog_name="acestep-otel")
@option_group(
    "Device & Backend",
    option(
        "--device",
        default=DEFAULTS.device,
        envvar=VARIABLES["device"],
        help="Device: auto, cuda, cuda:N, mps or cpu. auto takes the first of CUDA, MPS and CPU.",
    ),
    option(
        "--lm-backend",
        metavar=f"[{'|'.join(get_args(BackendName))}]",
        default=DEFAULTS.lm_backend,
        envvar=VARIABLES["lm_backend"],
        help="Language-model backend. auto: mlx on MPS if installed, otherwise pt.",
    ),
)
@option_group(
    "Model Paths",
    option(
        "--config-path",
        default=DEFAULTS.config_path,
        envvar=VARIABLES["config_path"],
        help="Diffusion model (DiT): a name or a path.",
    ),
    option(
        "--lm-model", default=DEFAULTS.lm_model, envvar=VARIABLES["lm_model"], help="Language model: a name or a path."
    ),
)
@option_group(
    "Hardware Options",
    option("--offload-to-cpu", is_flag=True, help="Keep models in host memory while they are not in use."),
    option("--offload-dit-to-cpu", is_flag=True, help="The same for the DiT."),
    option(
        "--quantization",
        type=click.Choice(["int8_weight_only", "fp8_weight_only", "w8a8_dynamic"]),
        show_default="none",
        help="Quantization of the DiT's weights. Quantized models are compiled.",
    ),
)
@option_group(
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
)
@option_group(
    "Sampler Options",
    option("--shift", type=Number(), show_default="3 for turbo, else 1", help="Timestep shift of the schedule."),
    option(
        "--timesteps",
        show_default="none",
        metavar="T,T,...",
        help="Flow times to evaluate, falling, instead of steps and shift: 0.97,0.76,0.5,0.3,0.",
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
)
@option_group(
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
        help="Hold the metadata to its grammar.",
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
    option("--lm-top-k", type=int, default=DEFAULTS.lm_top_k, help="Keep the k most probable tokens; 0 is off."),
    option("--lm-top-p", type=Number(), default=DEFAULTS.lm_top_p, help="Nucleus sampling; 1 is off."),
    option(
        "--lm-negative-prompt",
        default=DEFAULTS.lm_negative_prompt,
        help="Text of the unconditional prompt in place of caption and lyrics.",
    ),
)
@option_group(
    "Profiling Options",
    option("--mode", type=click.Choice(get_args(Mode)), default=DEFAULTS.mode, help="What to measure."),
    option("--no-warmup", is_flag=True, help="Measure the first run, compilation and first allocations included."),
    option("--detailed", is_flag=True, help="One more run under cProfile: the most expensive functions."),
    option("--llm-debug", is_flag=True, help="Tokens, throughput and gaps of each phase of the language model."),
    option("--benchmark-output", type=_FILE, show_default="none", help="Write the results to this JSON file."),
)
@option_group(
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
    option("--tier-batch-boundary", is_flag=True, help="Run each tier with 1, 2, 4 and 8 songs until memory runs out."),
    option(
        "--tier-duration",
        type=Number(),
        default=DEFAULTS.tier_duration,
        metavar="SECONDS",
        help="Length of the song that each tier makes, 10 to 600; ACE-Step's own profiler makes 240 s.",
    ),
)
@option_group(
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
)
@option_group(
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
        help="Share of the steps, 0 to 1, that follow the source (cover) or the audio codes; the rest follow the text.",
    ),
    option(
        "--cover-noise-strength",
        type=Number(),
        default=DEFAULTS.cover_noise_strength,
        help="0 starts from noise; towards 1 the start is nearer to the source.",
    ),
    option(
        "--repaint-mode",
        type=click.Choice(["conservative", "balanced", "aggressive"]),
        default=DEFAULTS.repaint_mode,
        help="How firmly a repaint is held to its source.",
    ),
    option(
        "--repaint-strength",
        type=Number(),
        default=DEFAULTS.repaint_strength,
        help="Of mode balanced, 0 to 1: 0 holds it as conservative does.",
    ),
    option(
        "--track",
        multiple=True,
        show_default="none",
        help="Track to add (lego, complete) or isolate (extract), for example vocals. complete accepts several.",
    ),
)
@option_group(
    "Measurement",
    option(
        "--repeat",
        type=WholeNumber(min=1, max=10_000),
        default=DEFAULTS.repeat,
        help="Runs of each benchmark cell: median, minimum, spread.",
    ),
    option(
        "--tier-timeout",
        type=Number(min=0, max=MOST_SECONDS, min_open=True),
        default=DEFAULTS.tier_timeout,
        metavar="SECONDS",
        help="Time limit of a run of a tier test, loading included; after it the process is killed.",
    ),
    option(
        "--torch-profile",
        is_flag=True,
        help="One more run under torch.profiler: a trace for Perfetto or chrome://tracing.",
    ),
)
@option_group(
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
        metavar="PATH[:SCALE]",
        show_default="none",
        help="LoRA adapter of the DiT: a safetensors file or its folder; may be repeated.",
    ),
    option("--output-dir", type=_FILE, default=DEFAULTS.output_dir, help="Folder for the songs."),
    option("--audio-format", default=DEFAULTS.audio_format, help="flac, wav, wav32, mp3, ogg or opus."),
    option("--report", type=_FILE, show_default="none", help="Write an HTML report."),
    option(
        "--lyrics-token-limit",
        type=WholeNumber(),
        default=DEFAULTS.lyrics_token_limit,
        help="Maximum tokens of lyrics in the modes understand, create_sample and format_sample.",
    ),
    option("--no-progress", is_flag=True, help="Do not show progress bars."),
)
@option_group(
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
)
@click.pass_context
def command(context: click.Context, /, **values: Any) -> None:
    """Profile ACE-Step 1.5 inference: where did the time and the VRAM go?"""
    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    if values["tiny"]:
        for name in ("config_path", "lm_model"):
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                raise SetupError(f"--tiny chooses the models itself: leave out --{name.replace('_', '-')}")
    _require_words(context, values)
    options = Options(**values)
    require_available(options)
    _run(options)


for _subcommand in SUBCOMMANDS:
    command.add_command(_subcommand)


def _require_words(context: click.Context, values: Mapping[str, Any]) -> None:
    """What the environment or ``.env`` says is an error in the run that would use it, and nowhere else."""
    defaults: FileDefaults = context.meta[_FILE_DEFAULTS]
    if defaults.problem is not None:
        raise SetupError(defaults.problem)
    for name, (words, choices) in _WORDS.items():
        if words.fullmatch(values[name]):
            continue
        match context.get_parameter_source(name):
            case ParameterSource.ENVIRONMENT:
                place = f"{VARIABLES[name]}="
            case ParameterSource.DEFAULT_MAP:
                place = f"{defaults.places[name]}="
            case _:
                place = f"--{name.replace('_', '-')} "
        raise SetupError(f"{place}{values[name][:60]!r}: choose {choices}")


def _refuse_options(context: click.Context) -> None:
    """An option before a subcommand would have no effect."""
    for name in context.params:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise SetupError(f"{context.invoked_subcommand} does not take --{name.replace('_', '-')}")


def _run(options: Options) -> None:
    require_variables()
    # Imported here because PyTorch takes seconds to load, and neither --help nor a wrong flag needs it.
    from acestep.import_noise import quiet_imports

    with quiet_imports():
        from acestep_otel.profiler.modes import MODES
        from acestep_otel.profiler.telemetry.providers import Telemetry
    # PyTorch then hashes a quantised weight in another way; nothing is lost.
    warnings.filterwarnings("ignore", message=".*does not implement _stable_hash_for_caching.*")

    with (
        exit_on_terminate(),
        Telemetry(
            endpoint=options.otlp_endpoint,
            protocol=options.otlp_protocol,
            trace_output=options.trace_output,
            prometheus_port=options.prometheus_port,
        ) as telemetry,
    ):
        MODES[options.mode](options, telemetry)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: without the program's name; those of the process when not given.
    """
    prepare()
    status = _status(arguments)
    if (problem := finish()) is not None:
        return max(status, _complain(problem, FAILED))
    return status


def _status(arguments: Sequence[str] | None) -> int:
    streams = sys.stdout, sys.stderr
    try:
        command.main(args=None if arguments is None else list(arguments), standalone_mode=False)
    except click.ClickException as error:
        return _complain(f"{error.format_message()} (see --help)", error.exit_code)
    except click.Abort:
        return _complain("interrupted", INTERRUPTED)
    except SetupError as error:
        return _complain(str(error), USAGE)
    except SystemExit:
        # Where the reader of --help has gone, click puts wrappers around both streams and ends in a failure.
        if sys.stdout is streams[0]:
            raise
        sys.stdout, sys.stderr = streams
        return 0
    except (RunFailed, OSError) as error:
        return _complain(str(error), FAILED)
    except Exception as error:
        from acestep.errors import AceStepError, InvalidRequest
        from acestep_otel.profiler.flags import in_flags

        # Anything else is a defect, whose traceback is what helps.
        if not isinstance(error, AceStepError):
            raise
        return _complain(in_flags(error), USAGE if isinstance(error, InvalidRequest) else FAILED)
    return 0


def _complain(message: str, status: int) -> int:
    echo(f"error: {' '.join(message.split())}", err=True)
    return status
