"""Board *Profile*: where the time of one run went, or of several side by side."""

from __future__ import annotations

from typing import Final

from grafana_foundation_sdk.builders import dashboard

from acestep_otel import semconv
from acestep_otel.report.breakdown import Breakdown
from acestep_otel.report.rows import Row, breakdown_rows
from grafana.panels import (
    Column,
    Labels,
    Query,
    Size,
    Text,
    TraceSearch,
    bars,
    board,
    choice,
    data_table,
    heat_map,
    stacked_bars,
    stats,
    traces,
)
from grafana.series import (
    MODEL,
    RUN,
    STAGE,
    label,
    last,
    mean_of_last,
    named,
    quantile_of_last,
    selected,
    values_of,
)

_ROW: Final = label(semconv.PROFILE_ROW)
_COMPONENT: Final = "component"
_ORDER: Final = "order"
_OF_RUN: Final = f'{STAGE}=~"$request"'
_PARTS: Final = ("planner", "diffusion", "vae_decode", "audio_save", "other")
"""Rows that add up to the wall time."""


def profile() -> dashboard.Dashboard:
    """The board."""
    found = (
        board(
            "acestep-profile",
            "Profile",
            "The time breakdown of one run, or of several side by side: name runs with OTEL_SERVICE_NAME.",
            from_="now-24h",
        )
        .with_variable(choice("job", "Run", values_of(semconv.PROFILE_DURATION, "job")))
        .with_variable(choice("instance", "Machine", values_of(semconv.PROFILE_DURATION, "instance", 'job=~"$job"')))
        .with_variable(choice("request", "Request", values_of(semconv.PROFILE_DURATION, STAGE, RUN)))
        .with_variable(choice("service", "Traces of", values_of(semconv.PROFILE_DURATION, "job"), several=False))
        .with_row(dashboard.Row("Where the time went"))
    )
    for panel in (
        _key_metrics(),
        _tokens_per_second(),
        _breakdown(),
        _comparison(),
        _stages(),
    ):
        found = found.with_panel(panel)
    found = found.with_row(dashboard.Row("Denoising steps and VAE tiles"))
    for panel in (_step_quantiles(), _steps(), _tiles()):
        found = found.with_panel(panel)
    found = found.with_row(dashboard.Row("Language model"))
    for panel in (_phases(), _tokens(), _first_tokens()):
        found = found.with_panel(panel)
    return (
        found.with_row(dashboard.Row("Memory and traces"))
        .with_panel(_memory())
        .with_panel(
            traces(
                Text("Traces", "Newest traces of the service chosen above, the longest first.", "none"),
                TraceSearch(""),
                Size(12),
            )
        )
    )


def _rows() -> list[Row]:
    """Rows of the terminal's table, in its order."""
    return list(breakdown_rows(Breakdown(wall=0.0)))


def _named_rows(expression: str) -> str:
    """Give each row its name and its place in the terminal's table."""
    found = []
    for place, row in enumerate(_rows()):
        shown = f"├─ {row.label}" if row.is_child else row.label
        one = expression.replace("$row", row.component)
        with_name = f'label_replace({one}, "{_COMPONENT}", "{shown}", "{_ROW}", ".*")'
        found.append(f'label_replace({with_name}, "{_ORDER}", "{place:02}", "{_ROW}", ".*")')
    return " or ".join(found)


def _seconds(row: str = "$row") -> str:
    return last(semconv.PROFILE_DURATION, _OF_RUN, f'{_ROW}="{row}"')


def _key_metrics() -> stat_panel:
    names = {"wall": "Wall Time", "planner": "LM Total Time", "diffusion": "DiT Total Time", "vae_decode": "VAE Decode Time"}
    return stats(
        Text("Key metrics", "Of the last measured run: end to end, and the three that take most of it.", "s"),
        *(Query(f"max by (job) ({_seconds(row)})", f"{name} {{{{job}}}}", instant=True) for row, name in names.items()),
        size=Size(18, 5),
    )
