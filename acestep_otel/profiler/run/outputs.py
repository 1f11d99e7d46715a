"""Files that a run writes: checked before it runs, and written before anything is printed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from acestep_otel.profiler.files import require_apart, require_writable
from acestep_otel.profiler.options import Options
from acestep_otel.profiler.run.example import find_example
from acestep_otel.profiler.terminal import echo


def require_outputs(options: Options, *further: Path) -> None:
    """Check, before anything runs, that every file can be written and none replaces another.

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


def write_outputs(
    files: Iterable[tuple[str, Path | None, Callable[[], None]]], lines: Callable[[], Iterable[str]]
) -> None:
    """Write every file, then print: a closed terminal loses no file, and a full disk no table.

    Args:
        files: label, path and what writes it; without a path nothing is written.
        lines: what is printed above the paths.

    Raises:
        OSError: the first file that could not be written.
    """
    written, failures = [], []
    for label, path, write in files:
        if path is None:
            continue
        try:
            write()
            written.append(f"{label + ':':<8} {path}")
        except OSError as error:
            failures.append(error)
    for line in (*lines(), *written):
        echo(line)
    if failures:
        raise failures[0]
