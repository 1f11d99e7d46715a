"""Files that a run will write: possible, and none of them another one or an input of the run."""

from __future__ import annotations

from pathlib import Path

from acestep_otel.profiler.files import require_apart, require_writable
from acestep_otel.profiler.options import Options
from acestep_otel.profiler.run.example import find_example


def require_outputs(options: Options, *further: Path) -> None:
    """Make sure, before anything runs, that every file can be written and takes no other's place.

    Args:
        options: of the command line.
        further: files that are written beside those that the options name.

    Raises:
        SetupError: the first that cannot be, or two that are one.
    """
    outputs = [
        ("--benchmark-output", options.benchmark_output),
        ("--report", options.report),
        ("--trace-output", options.trace_output),
        *((f"the profile {path.name}", path) for path in further),
    ]
    inputs = [
        ("--src-audio", options.src_audio),
        ("--reference-audio", options.reference_audio),
        ("--example", find_example(options.example)),
    ]
    require_apart(outputs, inputs)
    for _, path in outputs:
        if path is not None:
            require_writable(path)
