"""Boards, their variables and their rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog import builder as cog
from grafana_foundation_sdk.models import dashboard as models

from acestep_otel.semconv import MetricDefinition
from grafana.panels import METRICS, METRICS_UID, TRACES_UID
from grafana.series import SERVICES, services_of

ALL: Final = models.VariableOption(selected=True, text="All", value="$__all")


def choice(name: str, title: str, query: str, *, several: bool = True) -> dashboard.QueryVariable:
    """A variable with the values of a label.

    Args:
        name: as used in expressions.
        title: as shown.
        query: from ``grafana.series.values_of``.
        several: whether more than one can be chosen, all of them at first.
    """
    variable = (
        dashboard.QueryVariable(name)
        .label(title)
        .query(query)
        .datasource(METRICS)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
    )
    return variable.multi(True).include_all(True).all_value(".*").current(ALL) if several else variable


def board(uid: str, title: str, description: str, *, from_: str, refresh: str = "") -> dashboard.Dashboard:
    """An empty board with the data source of its metrics.

    Args:
        uid: of the board; part of its address.
        title: as shown.
        description: what it answers.
        from_: start of the time range, for example ``now-24h``.
        refresh: interval; ``""`` for none.
    """
    found = (
        dashboard.Dashboard(f"ACE-Step / {title}")
        .uid(uid)
        .description(description)
        .tags(["acestep"])
        .timezone("browser")
        .time(from_, "now")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("Boards")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags(["acestep"])
            .as_dropdown(True)
        )
    )
    found = found.with_variable(_data_source("metrics", "Metrics", "prometheus", METRICS_UID))
    return found.refresh(refresh) if refresh else found


def with_traces(found: dashboard.Dashboard, metric: MetricDefinition) -> dashboard.Dashboard:
    """Add what a panel of traces needs: their data source and one service.

    Args:
        found: the board.
        metric: of the services that can be chosen.
    """
    source = _data_source("traces", "Traces", "jaeger", TRACES_UID)
    service = choice("service", "Traces of", services_of(metric), several=False).regex(SERVICES)
    return found.with_variable(source).with_variable(service)


def _data_source(name: str, title: str, kind: str, uid: str) -> dashboard.DatasourceVariable:
    chosen = models.VariableOption(selected=True, text=title, value=uid)
    return dashboard.DatasourceVariable(name).label(title).type(kind).current(chosen)


def assembled(
    empty: dashboard.Dashboard, rows: Mapping[str, Iterable[cog.Builder[models.Panel]]]
) -> dashboard.Dashboard:
    """Fill a board with rows of panels."""
    for title, panels in rows.items():
        empty = empty.with_row(dashboard.Row(title))
        for panel in panels:
            empty = empty.with_panel(panel)
    return empty
