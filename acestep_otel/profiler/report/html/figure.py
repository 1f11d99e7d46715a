"""A figure of the page: chart, legend, table, colours; and the facts listed beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from acestep_otel import semconv
from acestep_otel.profiler.report.breakdown import Component
from acestep_otel.profiler.report.environment import Environment
from acestep_otel.profiler.report.html.charts import Chart
from acestep_otel.profiler.report.html.curve import CurveChart
from acestep_otel.profiler.report.html.quantities import ABSENT, duration, size
from acestep_otel.profiler.report.spans import Preparation

OTHER: Final = "other"

_STAGES: Final = frozenset({"model", "lm", "condition", "dit", "vae", "audio"})

COMPONENTS: Final[dict[Component, str]] = {
    "vae_encode": "vae",
    "audio_tokenization": "audio",
    "token_generation": "lm",
    "constrained_decoding": "lm-grammar",
    "guidance": "lm-guidance",
    "diffusion": "dit",
    "vae_decode": "vae",
    "audio_save": "audio",
    "other": OTHER,
}
"""Colours of the rows that sum to the wall time, in their order."""


def colour_of(span_name: str) -> str:
    """Class of a span; roots and spans of the calling application are grey."""
    family = semconv.stage_of(span_name).partition(".")[0]
    return family if family in _STAGES else OTHER


def environment_facts(environment: Environment) -> tuple[tuple[str, str], ...]:
    """Hardware first, then versions."""
    accelerators = tuple(
        (
            "Accelerator",
            f"{found.name}, {size(found.memory_bytes)}" + (f", driver {found.driver}" if found.driver else ""),
        )
        for found in environment.accelerators
    )
    return (
        *accelerators,
        ("Processor", environment.cpu),
        ("Cores", str(environment.cpu_cores)),
        ("Memory", size(environment.memory_bytes)),
        ("Operating system", environment.operating_system),
        ("Python", environment.python),
        *environment.packages.items(),
        ("Revision", written(environment.git_revision)),
    )


def argument_facts(arguments: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Flag and value of every option, in the order given."""
    return tuple((f"--{name.replace('_', '-')}", written(value)) for name, value in arguments.items())


def preparation_facts(preparation: Preparation | None) -> tuple[str, ...]:
    """Durations of loading and warm-ups; empty if no span shows them."""
    if preparation is None:
        return ()
    named = (("models loaded in", preparation.load), ("warm-up took", preparation.warm_up))
    return tuple(f"{name} {duration(seconds)}" for name, seconds in named if seconds is not None)


def written(value: object) -> str:
    """A setting as text."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (list, tuple)):
        return " ".join(map(written, value)) or ABSENT
    return str(value)


@dataclass(frozen=True, slots=True)
class Table:
    """The figures of a chart.

    Attributes:
        columns: headings; the first one heads the names of the rows.
        rows: as many cells each.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart, its legend and its figures.

    Attributes:
        chart: the drawing; ``None`` if there is nothing to draw.
        legend: class of the style sheet, and meaning.
        table: the same in numbers.
    """

    chart: Chart | None
    legend: tuple[tuple[str, str], ...]
    table: Table


@dataclass(frozen=True, slots=True)
class CurveFigure:
    """A figure with values over time."""

    chart: CurveChart
    legend: tuple[tuple[str, str], ...]
    table: Table
