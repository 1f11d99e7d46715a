"""Runs of ``--detailed`` and ``--torch-profile``: the same call under profilers that slow it down.

They follow the measured run, so they do not affect the report.
"""

from __future__ import annotations

import cProfile
import io
import marshal
import pstats
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from torch.profiler import ProfilerActivity, record_function

from acestep_otel import semconv
from acestep_otel.patches.engine import PATCHES
from acestep_otel.patches.patcher import Patcher
from acestep_otel.profiler.files import can_be_replaced, replacing, replacing_bytes
from acestep_otel.profiler.options import Options
from acestep_otel.profiler.terminal import echo
from acestep_otel.recording.call import Call, LoadDefinition, RequestDefinition, StageDefinition

_SHOWN_FUNCTIONS: Final = 20
_WRITTEN_FUNCTIONS: Final = 200
_BUILTINS: Final = sys.version_info < (3, 12)
"""Since 3.12 cProfile sees bound C functions return that it has not seen called, and takes their callers off its stack:
their time goes elsewhere (python/cpython#122029). What a function spends in C is its own time then."""


def run_profilers(options: Options, call: Callable[[], object]) -> None:
    """Run the call again under each requested profiler.

    Args:
        options: of the command line.
        call: what was measured; called once per profiler.

    Raises:
        OSError: a file could not be written.
    """
    if options.detailed:
        _profile_functions(_beside(options, ".prof"), _beside(options, ".functions.txt"), call)
    if options.torch_profile:
        _profile_operators(operator_trace(options), call)


def profiler_files(options: Options) -> Iterator[Path]:
    """Every file that ``run_profilers`` will write."""
    if options.detailed:
        yield from (_beside(options, ".prof"), _beside(options, ".functions.txt"))
    if options.torch_profile:
        yield operator_trace(options)


def operator_trace(options: Options) -> Path:
    """The file of ``--torch-profile``."""
    return _beside(options, ".torch-trace.json")


def _beside(options: Options, suffix: str) -> Path:
    """A file beside the result file, else in the output folder under the mode's name."""
    result = options.benchmark_output
    if result is not None and can_be_replaced(result):
        return result.with_suffix(suffix)
    return options.output_dir / f"{options.mode}{suffix}"


def _profile_functions(statistics: Path, text: Path, call: Callable[[], object]) -> None:
    profiler = cProfile.Profile(builtins=_BUILTINS)
    profiler.runcall(call)
    profiler.create_stats()
    with replacing_bytes(statistics) as file:
        # The form that ``pstats`` reads.
        file.write(marshal.dumps(profiler.stats))
    with replacing(text) as stream:
        pstats.Stats(profiler, stream=stream).sort_stats("cumulative").print_stats(_WRITTEN_FUNCTIONS)
    shown = io.StringIO()
    pstats.Stats(profiler, stream=shown).strip_dirs().sort_stats("cumulative").print_stats(_SHOWN_FUNCTIONS)
    echo(f"\nTOP {_SHOWN_FUNCTIONS} FUNCTIONS BY CUMULATIVE TIME")
    echo("A separate run under cProfile: it adds time to every call, so compare these figures with each other only.")
    echo(shown.getvalue().strip("\n"))
    echo(f"\nProfile: {statistics}\nText:    {text}")


def _profile_operators(trace: Path, call: Callable[[], object]) -> None:
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with _ranges(), torch.profiler.profile(activities=activities) as profiler:
        call()
    _export(profiler, trace)
    echo("\nA separate run under torch.profiler, which slows down every operator.")
    echo(f"Chrome trace (open it in ui.perfetto.dev): {trace}")


def _export(profiler: torch.profiler.profile, trace: Path) -> None:
    """Write the Chrome trace.

    PyTorch replaces whatever the path names, and does not report a file that it could not write. It therefore writes
    to a temporary folder, where the file is checked.

    Raises:
        OSError: it could not be written.
    """
    with TemporaryDirectory(dir=_writable_folder(trace), prefix=".torch-trace-") as folder:
        written = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(written))
        if not written.is_file():
            raise OSError(f"cannot write {trace}: PyTorch wrote no trace, for example because the disk is full")
        with written.open("rb") as source, replacing_bytes(trace) as stream:
            shutil.copyfileobj(source, stream)


def _writable_folder(trace: Path) -> Path | None:
    """A folder on the trace's own disk, or the system's temporary folder if the trace goes to a device."""
    return trace.parent if can_be_replaced(trace) else None


@contextmanager
def _ranges() -> Iterator[None]:
    """Give the profiler's ranges the names of the spans."""
    patcher = Patcher(ProfilerRanges())
    patcher.apply(PATCHES)
    try:
        yield
    finally:
        patcher.remove()


class ProfilerRanges:
    """Runs calls in ranges of ``torch.profiler`` (a ``StageRecorder``)."""

    def request(self, definition: RequestDefinition, call: Call) -> Any:
        """Run a call in a range of its own."""
        return _in_range(definition.span, call)

    def stage(self, definition: StageDefinition, call: Call) -> Any:
        """Run a call in a range of its own."""
        return _in_range(definition.span, call)

    def load(self, _definition: LoadDefinition, call: Call) -> Any:
        """Run a model's loading in a range of its own."""
        return _in_range(semconv.MODEL_LOAD, call)

    def adopt(self, *_details: Any) -> bool:
        """Adopt nothing: a library's measurement cannot become a range afterwards."""
        return False


def _in_range(name: str, call: Call) -> Any:
    with record_function(name):
        return call.run()
