"""What ``--detailed`` and ``--torch-profile`` add: further runs of the same call, under profilers that slow it down.

They come after the measured run, so no figure of the report contains them.
"""

from __future__ import annotations

import cProfile
import io
import pstats
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
import torch
from torch.profiler import ProfilerActivity

from acestep_otel.patches.engine import seams
from acestep_otel.patches.patcher import Patches
from acestep_otel.profiler.files import replacing
from acestep_otel.profiler.options import Options
from acestep_otel.profiler.run.torch_profiler_ranges import ProfilerRanges

_SHOWN_FUNCTIONS: Final = 20
_WRITTEN_FUNCTIONS: Final = 200
_BUILTINS: Final = sys.version_info < (3, 12)
"""Since 3.12 cProfile sees bound C functions return that it has not seen called, and takes their callers off its stack:
their time goes elsewhere (python/cpython#122029). What a function spends in C is its own time then."""


def examine(options: Options, call: Callable[[], object]) -> None:
    """Run the call again under each profiler that was asked for.

    Args:
        options: of the command line.
        call: what was measured; called once per profiler.

    Raises:
        OSError: a file could not be written.
    """
    if options.detailed:
        _examine_functions(_beside(options, ".prof"), _beside(options, ".functions.txt"), call)
    if options.torch_profile:
        _examine_operators(_beside(options, ".torch-trace.json"), call)


def examination_files(options: Options) -> Iterator[Path]:
    """Every file that ``examine`` will write."""
    if options.detailed:
        yield from (_beside(options, ".prof"), _beside(options, ".functions.txt"))
    if options.torch_profile:
        yield _beside(options, ".torch-trace.json")


def _beside(options: Options, suffix: str) -> Path:
    """A file beside the result file, else in the output folder under the mode's name."""
    if options.benchmark_output is not None:
        return options.benchmark_output.with_suffix(suffix)
    return options.output_dir / f"{options.mode}{suffix}"


def _examine_functions(statistics: Path, text: Path, call: Callable[[], object]) -> None:
    profiler = cProfile.Profile(builtins=_BUILTINS)
    profiler.runcall(call)
    profiler.dump_stats(statistics)
    with replacing(text) as stream:
        pstats.Stats(profiler, stream=stream).sort_stats("cumulative").print_stats(_WRITTEN_FUNCTIONS)
    shown = io.StringIO()
    pstats.Stats(profiler, stream=shown).strip_dirs().sort_stats("cumulative").print_stats(_SHOWN_FUNCTIONS)
    click.echo(f"\nTOP {_SHOWN_FUNCTIONS} FUNCTIONS BY CUMULATIVE TIME")
    click.echo(
        "A separate run under cProfile: it adds time to every call, so compare these figures with each other only."
    )
    click.echo(shown.getvalue().strip("\n"))
    click.echo(f"\nProfile: {statistics}\nText:    {text}")


def _examine_operators(trace: Path, call: Callable[[], object]) -> None:
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with _ranges(), torch.profiler.profile(activities=activities) as profiler:
        call()
    profiler.export_chrome_trace(str(trace))
    click.echo("\nA separate run under torch.profiler, which slows down every operator.")
    click.echo(f"Chrome trace (open it in ui.perfetto.dev): {trace}")


@contextmanager
def _ranges() -> Iterator[None]:
    """Name the profiler's ranges like our spans."""
    patches = Patches()
    patches.apply(seams(ProfilerRanges()))
    try:
        yield
    finally:
        patches.remove()
