"""The page: what it is made from, how it is rendered, and that it loads nothing and runs nothing but its own."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment as Templates
from jinja2 import PackageLoader, StrictUndefined
from markupsafe import Markup

from acestep_otel.profiler.benchmark.matrix import CellResult
from acestep_otel.profiler.files import replacing
from acestep_otel.profiler.report.energy import RunEnergy
from acestep_otel.profiler.report.environment import Environment
from acestep_otel.profiler.report.html.charts import RIGHT
from acestep_otel.profiler.report.html.figure import Figure, argument_facts, environment_facts
from acestep_otel.profiler.report.html.headline import Headline, headline
from acestep_otel.profiler.report.html.matrix import matrix_section
from acestep_otel.profiler.report.html.memory import MemorySection, memory_section
from acestep_otel.profiler.report.html.player import PlayedSong, played_songs
from acestep_otel.profiler.report.html.roofline import RooflineSection, roofline_section
from acestep_otel.profiler.report.html.sections import BreakdownSection, breakdown_section, step_section
from acestep_otel.profiler.report.html.tiers import tier_caution, tier_section
from acestep_otel.profiler.report.html.tokens import TokenSection, token_section
from acestep_otel.profiler.report.html.waterfall import Waterfall, waterfall
from acestep_otel.profiler.report.spans import Run
from acestep_otel.profiler.report.stalls import stall_lines
from acestep_otel.profiler.tier_test.trials import TierResult


@dataclass(frozen=True, slots=True)
class Report:
    """What a page is made from.

    Attributes:
        mode: of the command line.
        environment: what it ran on.
        arguments: every option of the command line, given or not.
        runs: the measured runs, in order; none when tracing was off or nothing got that far.
        matrix: rows of a benchmark; none in other modes.
        tiers: rows of a tier test; none in other modes.
        failure: one line on what ended the command, or ``None``.
        command: what was typed, to be copied; ``None`` when that is not known.
    """

    mode: str
    environment: Environment
    arguments: Mapping[str, Any]
    runs: Sequence[Run] = ()
    matrix: Sequence[CellResult] = ()
    tiers: Sequence[TierResult] = ()
    failure: str | None = None
    command: str | None = None


@dataclass(frozen=True, slots=True)
class RunSections:
    """One run, ready to be drawn; a section with nothing to say is ``None``."""

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
    def of(cls, run: Run) -> RunSections:
        """Work out every section."""
        return cls(
            headline=headline(run),
            breakdown=breakdown_section(run),
            waterfall=waterfall(run),
            steps=step_section(run),
            tokens=token_section(run),
            memory=memory_section(run),
            roofline=roofline_section(run),
            energy=_energy_facts(run),
            stalls=tuple(stall_lines(run)),
            songs=played_songs(run),
        )


def render_report(report: Report) -> str:
    """The page as HTML: no network, no external font, style or script; all that was given is escaped.

    Its content security policy allows the page's own style and script by their hashes and nothing else.
    """
    # Without autoescape a caption could become markup; a variable that a template misspells is an error.
    templates = Templates(
        loader=PackageLoader("acestep_otel.profiler.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals["right"] = RIGHT
    style, script = _asset("page.css"), _asset("page.js")
    return templates.get_template("page.html.j2").render(
        mode=report.mode,
        failure=report.failure,
        command=report.command,
        runs=[RunSections.of(run) for run in report.runs],
        matrix=matrix_section(report.matrix),
        tiers=tier_section(report.tiers),
        tier_caution=tier_caution(report.tiers),
        environment=environment_facts(report.environment),
        arguments=argument_facts(report.arguments),
        style=Markup(style),
        style_hash=_hash(style),
        script=Markup(script),
        script_hash=_hash(script),
    )


def write_report(path: Path, report: Report) -> None:
    """Write the page.

    Raises:
        OSError: it could not be written; what was there before is unchanged.
    """
    # A file name of the command line that is no UTF-8 comes as lone surrogates, which no page can hold.
    page = render_report(report).encode("utf-8", errors="replace").decode("utf-8")
    with replacing(path) as stream:
        stream.write(page)


def _energy_facts(run: Run) -> tuple[tuple[str, str], ...]:
    energy = RunEnergy.of(run)
    return () if energy is None else tuple(energy.facts())


def _asset(name: str) -> str:
    return (files("acestep_otel.profiler.report.html") / "templates" / name).read_text("utf-8")


def _hash(source: str) -> str:
    return f"sha256-{b64encode(hashlib.sha256(source.encode()).digest()).decode()}"
