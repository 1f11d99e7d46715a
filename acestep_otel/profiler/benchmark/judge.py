"""Subcommands ``compare --baseline`` and ``baseline``: the statistical gate, and its baselines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from acestep_otel.errors import SetupError
from acestep_otel.profiler.benchmark.baseline import (
    differing_settings,
    one_card,
    read_baseline,
    read_benchmark,
    save_baseline,
)
from acestep_otel.profiler.benchmark.gate import judge, samples_of
from acestep_otel.profiler.benchmark.gate_report import render_gate, render_junit, render_markdown
from acestep_otel.profiler.errors import RunFailed
from acestep_otel.profiler.files import replacing, require_apart, require_writable
from acestep_otel.profiler.terminal import echo


def judge_files(
    files: Sequence[Path],
    folder: Path,
    *,
    noise_floor: float = 0.0,
    junit: Path | None = None,
    markdown: Path | None = None,
) -> None:
    """Judge result files of one card against its baseline, print the verdicts and write the requested files.

    Args:
        files: each of a separate process.
        folder: of the baselines.
        noise_floor: milliseconds by which a median may increase, whatever the ratio.
        junit: JUnit file to write.
        markdown: Markdown file to write.

    Raises:
        SetupError: a file cannot be used, the files are of several cards, or the card has no baseline.
        RunFailed: a figure is slower in every file.
        OSError: a file could not be written.
    """
    outputs = (("--junit", junit), ("--markdown", markdown))
    require_apart(outputs, tuple((f"file {number}", path) for number, path in enumerate(files, start=1)))
    for _, path in outputs:
        if path is not None:
            require_writable(path)
    documents = [read_benchmark(path) for path in files]
    card = one_card(documents)
    baseline, tolerances = read_baseline(folder, card)
    title = f"{card} against its baseline of {baseline[0]['created']}"
    echo(title)
    for line in differing_settings(baseline[0], documents[0]):
        echo(f"  differs: {line}")
    judgements = judge(
        list(map(samples_of, baseline)), list(map(samples_of, documents)), tolerances, noise_floor / 1000
    )
    if not judgements:
        raise SetupError("the baseline and the files have no configuration in common")
    echo(f"\n{render_gate(judgements)}")
    for path, text in ((junit, render_junit), (markdown, render_markdown)):
        if path is not None:
            with replacing(path) as stream:
                stream.write(text(title, judgements))
    slower = [each for each in judgements if each.verdict == "slower"]
    if slower:
        raise RunFailed(f"{len(slower)} of {len(judgements)} figures are slower than the baseline")
    if all(each.verdict == "not judged" for each in judgements):
        raise RunFailed("no figure could be judged: run the benchmark with --repeat 7")


def keep(results: Sequence[Path], folder: Path, tolerances: Sequence[str]) -> None:
    """Store result files as the baseline of their card.

    Args:
        results: of mode ``benchmark``, each of a separate process.
        folder: of the baselines.
        tolerances: each ``COLUMN=SHARE``.

    Raises:
        SetupError: the file or a tolerance cannot be used.
        OSError: the baseline could not be written.
    """
    shares: dict[str, float] = {}
    for written in tolerances:
        column, _, share = written.partition("=")
        try:
            shares[column.strip()] = float(share)
        except ValueError:
            raise SetupError(f"--tolerance {written!r}: give COLUMN=SHARE, such as wall_time=0.05") from None
        if not 0 <= shares[column.strip()] < 10:
            raise SetupError(f"--tolerance {written!r}: a share is from 0 to 10")
    echo(f"Baseline: {save_baseline(results, folder, shares)}")
