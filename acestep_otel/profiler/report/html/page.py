"""The page of a run, and its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acestep_otel.profiler.benchmark.matrix import CellResult
from acestep_otel.profiler.report.energy import RunEnergy
from acestep_otel.profiler.report.environment import Environment
from acestep_otel.profiler.report.html.figure import Figure, argument_facts, environment_facts
from acestep_otel.profiler.report.html.headline import Headline, headline
from acestep_otel.profiler.report.html.matrix import matrix_section
from acestep_otel.profiler.report.html.memory import MemorySection, card_memory, memory_section
from acestep_otel.profiler.report.html.player import PlayedSong, played_songs
from acestep_otel.profiler.report.html.rendering import render_page, write_page
from acestep_otel.profiler.report.html.roofline import RooflineSection, roofline_section
from acestep_otel.profiler.report.html.sections import BreakdownSection, breakdown_section, step_section
from acestep_otel.profiler.report.html.tiers import tier_caution, tier_section
from acestep_otel.profiler.report.html.tokens import TokenSection, token_section
from acestep_otel.profiler.report.html.waterfall import Waterfall, waterfall
from acestep_otel.profiler.report.spans import Preparation, Run
from acestep_otel.profiler.report.stalls import stall_lines
from acestep_otel.profiler.tier_test.trials import TierResult


@dataclass(frozen=True, slots=True)
class Report:
    """The data of a page.

    Attributes:
        mode: of the command line.
        environment: hardware and versions.
        arguments: every option of the command line, given or not.
        runs: the measured runs, in order; none if tracing was off or no run began.
        matrix: rows of a benchmark; none in other modes.
        tiers: rows of a tier test; none in other modes.
        failure: one line on what ended the command, or ``None``.
        command: the command, to be copied; ``None`` if it is not known.
        preparation: preparation of the measured runs; ``None`` if it is not known.
    """

    mode: str
    environment: Environment
    arguments: Mapping[str, Any]
    runs: Sequence[Run] = ()
    matrix: Sequence[CellResult] = ()
    tiers: Sequence[TierResult] = ()
    failure: str | None = None
    command: str | None = None
    preparation: Preparation | None = None


@dataclass(frozen=True, slots=True)
class RunSections:
    """The sections of one run; a section without content is ``None``."""

    headline: Headline
    breakdown: BreakdownSection
    waterfall: Waterfall
    steps: Figure | None
    tokens: TokenSection | None
    memory: MemorySection | None
    roofline: RooflineSection | None
    energy: tuple[tuple[str, str], ...]
    stalls: tuple[str, ...]
    songs: tuple[PlayedSong, ...]

    @classmethod
    def of(cls, run: Run, report: Report) -> RunSections:
        """Compute every section."""
        card = card_memory(run, report.environment)
        return cls(
            headline=headline(run, report.preparation, card),
            breakdown=breakdown_section(run),
            waterfall=waterfall(run),
            steps=step_section(run),
            tokens=token_section(run),
            memory=memory_section(run, card),
            roofline=roofline_section(run),
            energy=_energy_facts(run),
            stalls=tuple(stall_lines(run)),
            songs=played_songs(run),
        )


def render_report(report: Report) -> str:
    """The page as HTML (see ``rendering``)."""
    return render_page(
        "page.html.j2",
        mode=report.mode,
        failure=report.failure,
        command=report.command,
        runs=[RunSections.of(run, report) for run in report.runs],
        matrix=matrix_section(report.matrix, report.preparation),
        tiers=tier_section(report.tiers),
        tier_caution=tier_caution(report.tiers),
        environment=environment_facts(report.environment),
        arguments=argument_facts(report.arguments),
    )


def write_report(path: Path, report: Report) -> None:
    """Write the page.

    Raises:
        OSError: it could not be written; the previous file is unchanged.
    """
    write_page(path, render_report(report))


def _energy_facts(run: Run) -> tuple[tuple[str, str], ...]:
    energy = RunEnergy.of(run)
    return () if energy is None else tuple(energy.facts())
