"""Subcommand ``compare``: the regression gate, and one machine against another."""

from __future__ import annotations

import shlex
from pathlib import Path

from acestep_otel.errors import SetupError
from acestep_otel.profiler.benchmark.comparison import Comparison, IncomparableResults, ResultFile
from acestep_otel.profiler.benchmark.matrix_table import render_comparison
from acestep_otel.profiler.errors import RunFailed
from acestep_otel.profiler.files import require_apart, require_writable
from acestep_otel.profiler.report.html.comparison import write_comparison_page
from acestep_otel.profiler.report.results import write_result
from acestep_otel.profiler.run.outputs import write_outputs
from acestep_otel.profiler.terminal import echo


def compare(
    baseline: Path,
    candidate: Path,
    *,
    threshold: float,
    noise_floor: float = 0.0,
    output: Path | None = None,
    report: Path | None = None,
) -> None:
    """Print the ratios of two result files, and write them to the requested files.

    Args:
        baseline: the file compared with.
        candidate: the file that is checked.
        threshold: largest ratio that passes.
        noise_floor: smaller increases, in milliseconds, pass with any ratio.
        output: JSON file to write.
        report: HTML page to write.

    Raises:
        SetupError: a file cannot be read or written, or the two have nothing to compare.
        RunFailed: a ratio is above the threshold and the difference above noise, or a cell fails only in the candidate.
        OSError: a file could not be written.
    """
    require_apart((("--output", output), ("--report", report)), (("A.json", baseline), ("B.json", candidate)))
    for path in filter(None, (output, report)):
        require_writable(path)
    try:
        comparison = Comparison.of(ResultFile.read(baseline), ResultFile.read(candidate), threshold, noise_floor / 1000)
    except IncomparableResults as error:
        raise SetupError(str(error)) from error

    def write_page() -> None:
        assert report is not None
        words = ["acestep-otel", "compare", str(baseline), str(candidate), "--threshold", f"{threshold:g}"]
        command = shlex.join([*words, "--noise-floor", f"{noise_floor:g}", "--report", str(report)])
        write_comparison_page(report, comparison, command)

    def write_ratios() -> None:
        assert output is not None
        write_result(output, comparison.to_json())

    write_outputs(
        (("Ratios", output, write_ratios), ("Report", report, write_page)),
        lambda: (render_comparison(comparison), *_energies(comparison), *([""] if output or report else [])),
    )
    if regressions := comparison.regressions:
        echo("\n".join(["", *regressions]))
        raise RunFailed(f"{len(regressions)} of the figures did not pass the threshold of {threshold:g}")


def _energies(comparison: Comparison) -> tuple[str, ...]:
    energies = comparison.energies
    return ("", "Energy (not judged):", *(f"  {line}" for line in energies)) if energies else ()
