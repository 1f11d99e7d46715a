"""Subcommand ``compare``: the regression gate, and one machine against another."""

from __future__ import annotations

from pathlib import Path

from acestep_otel.errors import SetupError
from acestep_otel.profiler.benchmark.comparison import Comparison, IncomparableResults, ResultFile
from acestep_otel.profiler.benchmark.matrix_table import render_comparison
from acestep_otel.profiler.errors import RunFailed
from acestep_otel.profiler.files import require_apart, require_writable
from acestep_otel.profiler.report.results import write_result
from acestep_otel.profiler.terminal import echo


def compare(
    baseline: Path, candidate: Path, *, threshold: float, noise_floor: float = 0.0, output: Path | None = None
) -> None:
    """Print the ratios of two result files, and write them to a file when one is named.

    Args:
        baseline: the file compared with.
        candidate: the file that is checked.
        threshold: largest ratio that passes.
        noise_floor: smaller increases, in milliseconds, pass with any ratio.
        output: JSON file to write.

    Raises:
        SetupError: a file cannot be read or written, or the two have nothing to compare.
        RunFailed: a ratio is above the threshold and more than noise, or a cell fails that did not.
        OSError: the output could not be written.
    """
    require_apart((("--output", output),), (("A.json", baseline), ("B.json", candidate)))
    if output is not None:
        require_writable(output)
    try:
        comparison = Comparison.of(ResultFile.read(baseline), ResultFile.read(candidate), threshold, noise_floor / 1000)
    except IncomparableResults as error:
        raise SetupError(str(error)) from error
    echo(render_comparison(comparison))
    if output is not None:
        write_result(output, comparison.to_json())
    if regressions := comparison.regressions:
        echo("\n".join(["", *regressions]))
        raise RunFailed(f"{len(regressions)} of the figures did not pass the threshold of {threshold:g}")
