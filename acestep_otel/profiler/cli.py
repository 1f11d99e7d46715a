"""The command line: options to a mode, errors to one line and an exit code.

Exit codes: 0 done; 1 the run failed; 2 wrong usage or set-up; 130 and 143 ended by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import click
import cloup
from click.core import ParameterSource

from acestep.documents import is_text, shown
from acestep_otel import __version__
from acestep_otel.errors import SetupError
from acestep_otel.profiler.dotenv import ENVIRONMENT_FILE, VARIABLES, FileDefaults, read_defaults
from acestep_otel.profiler.errors import RunFailed
from acestep_otel.profiler.option_groups import all_options
from acestep_otel.profiler.options import Options, require_available
from acestep_otel.profiler.subcommands import SUBCOMMANDS
from acestep_otel.profiler.terminal import echo, finish, prepare
from acestep_otel.sdk.variables import require_variables
from acestep_otel.shutdown import INTERRUPTED, exit_on_terminate

FAILED: Final = 1
"""Exit code of a failed run."""
USAGE: Final = 2
"""Exit code of wrong usage or set-up."""
_LONGEST_MESSAGE: Final = 2_000
_KEPT_END: Final = 200
"""Characters kept from the end of a message that is too long."""

_FILE_DEFAULTS: Final = f"{__name__}.file_defaults"
_DEVICE_WORDS: Final = (re.compile(r"auto|cuda(:[0-9]{1,4})?|mps|cpu"), "auto, cuda, cuda:N, mps or cpu")
_WORDS: Final = {
    "device": _DEVICE_WORDS,
    "dit_device": _DEVICE_WORDS,
    "lm_device": _DEVICE_WORDS,
    "lm_backend": (re.compile(r"auto|vllm|pt|mlx"), "auto, vllm, pt or mlx"),
}
"""Valid values, for options that can be checked without loading anything."""


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
    """Refuse an argument that is not UTF-8, which no result, page or span can contain.

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
  The released models, downloaded once (several GB):
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
@all_options
@click.pass_context
def command(context: click.Context, /, **values: Any) -> None:
    """Profile ACE-Step 1.5 inference: where did the time and the VRAM go?"""
    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    if values["tiny"]:
        for name in ("config_path", "lm_model"):
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                raise SetupError(f"--tiny selects its own models: leave out --{name.replace('_', '-')}")
    _require_words(context, values)
    options = Options(**values)
    require_available(options)
    _run(options)


for _subcommand in SUBCOMMANDS:
    command.add_command(_subcommand)


def _require_words(context: click.Context, values: Mapping[str, Any]) -> None:
    """Check values of the environment and ``.env`` in the run that uses them, and only there."""
    defaults: FileDefaults = context.meta[_FILE_DEFAULTS]
    if defaults.problem is not None:
        raise SetupError(defaults.problem)
    for name, (words, choices) in _WORDS.items():
        if values[name] is None or words.fullmatch(values[name]):
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
        # If the reader of --help has closed the pipe, click wraps both streams and fails.
        if sys.stdout is streams[0]:
            raise
        sys.stdout, sys.stderr = streams
        return 0
    except (RunFailed, OSError) as error:
        return _complain(str(error), FAILED)
    except Exception as error:
        from acestep.errors import AceStepError, InvalidRequest
        from acestep_otel.profiler.flags import in_flags

        # Any other exception is a defect, which needs its traceback.
        if not isinstance(error, AceStepError):
            raise
        return _complain(in_flags(error), USAGE if isinstance(error, InvalidRequest) else FAILED)
    return 0


def _complain(message: str, status: int) -> int:
    line = " ".join(message.split())
    if len(line) > _LONGEST_MESSAGE:
        # click quotes the input in full; the beginning names it and the end contains the advice.
        line = f"{line[: _LONGEST_MESSAGE - _KEPT_END]} … {line[-_KEPT_END:]}"
    echo(f"error: {line}", err=True)
    return status
