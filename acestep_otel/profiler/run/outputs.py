"""Files that a run will write: possible, and none of them another one or an input of the run."""

from __future__ import annotations

from collections.abc import Callable
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


def write_files(*files: tuple[str, Path | None, Callable[[Path], object]]) -> tuple[list[str], list[OSError]]:
    """Write every file that was asked for, whatever becomes of the others.

    Args:
        files: what each is, where it goes (``None``: nowhere), and what writes it.

    Returns:
        A line for each that was written, and the errors of the others.
    """
    lines, failures = [], []
    for label, path, write in files:
        if path is None:
            continue
        try:
            write(path)
            lines.append(file_line(label, path))
        except OSError as error:
            failures.append(error)
    return lines, failures


def file_line(label: str, path: Path) -> str:
    """What is printed about a file."""
    return f"{label + ':':<8} {path}"
