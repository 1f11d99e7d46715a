"""Panels and variables that the boards have in common, over grafana-foundation-sdk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, Self, TypeVar

from grafana_foundation_sdk.builders import barchart, bargauge, dashboard, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog import builder as cog
from grafana_foundation_sdk.cog import variants
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as prometheus_models

METRICS: Final = common_models.DataSourceRef(type_val="prometheus", uid="${metrics}")
TRACES: Final = common_models.DataSourceRef(type_val="jaeger", uid="${traces}")
METRICS_UID: Final = "prometheus"
"""Uid of the provisioned data source of metrics."""
TRACES_UID: Final = "jaeger"
"""Uid of the provisioned data source of traces."""
WIDTH: Final = 24
"""Columns of Grafana's grid."""
_REFERENCES: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

Target = cog.Builder[variants.Dataquery]


class _Described(Protocol):
    def title(self, title: str) -> Self: ...
    def description(self, description: str) -> Self: ...
    def unit(self, unit: str) -> Self: ...
    def datasource(self, datasource: common_models.DataSourceRef) -> Self: ...
    def span(self, w: int) -> Self: ...
    def height(self, h: int) -> Self: ...
    def targets(self, targets: list[Target]) -> Self: ...


PanelBuilder = TypeVar("PanelBuilder", bound=_Described)


@dataclass(frozen=True, slots=True)
class Size:
    """Columns and rows of the grid."""

    columns: int
    rows: int = 8


@dataclass(frozen=True, slots=True)
class Text:
    """What a panel is called, what it says, and the unit of its figures (Grafana's name for it)."""

    title: str
    description: str
    unit: str


def _described(panel: PanelBuilder, text: Text, size: Size, targets: Sequence[Target]) -> PanelBuilder:
    return (
        panel.title(text.title)
        .description(text.description)
        .unit(text.unit)
        .datasource(METRICS)
        .span(size.columns)
        .height(size.rows)
        .targets(list(targets))
    )


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL query.

    Attributes:
        expression: PromQL.
        legend: of each series; ``{{label}}`` is replaced.
        instant: one value at the end of the time range, for what is read with ``last``.
        exemplars: whether points that lead to traces are asked for.
    """

    expression: str
    legend: str = ""
    instant: bool = False
    exemplars: bool = False


def targets(*queries: Query, format_: prometheus_models.PromQueryFormat | None = None) -> list[Target]:
    """Queries of a panel, named A, B, ..."""
    return [_target(query, reference, format_) for query, reference in zip(queries, _REFERENCES, strict=False)]


def _target(query: Query, reference: str, format_: prometheus_models.PromQueryFormat | None) -> Target:
    target = (
        prometheus.Dataquery()
        .expr(query.expression)
        .legend_format(query.legend or "__auto")
        .datasource(METRICS)
        .ref_id(reference)
        .exemplar(query.exemplars)
    )
    target = target.instant() if query.instant else target.range()
    return target if format_ is None else target.format(format_)


def time_series(text: Text, *queries: Query, size: Size = Size(12)) -> timeseries.Panel:
    """Lines over time."""
    return _described(timeseries.Panel(), text, size, targets(*queries)).min(0).span_nulls(False)


def stats(text: Text, *queries: Query, size: Size = Size(12, 4), decimals: float = 2) -> stat.Panel:
    """Figures in large type, one for each query."""
    return _described(stat.Panel(), text, size, targets(*queries)).decimals(decimals)


def bars(text: Text, *queries: Query, size: Size = Size(12)) -> bargauge.Panel:
    """One horizontal bar for each series."""
    return (
        _described(bargauge.Panel(), text, size, targets(*queries))
        .orientation(common_models.VizOrientation.HORIZONTAL)
        .min(0)
    )


def heat_map(text: Text, query: Query, size: Size = Size(12)) -> heatmap.Panel:
    """A histogram's buckets over time."""
    axis = heatmap.YAxisConfig().unit(text.unit)
    format_ = prometheus_models.PromQueryFormat.HEATMAP
    return _described(heatmap.Panel(), text, size, targets(query, format_=format_)).calculate(False).y_axis(axis)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of figures in a table.

    Attributes:
        header: its name.
        expression: PromQL; all columns of a table have the same labels.
        unit: Grafana's name for it; ``""`` is the panel's.
        mappings: what stands for which value.
        thresholds: from which value on which colour; the first value is ignored by Grafana.
    """

    header: str
    expression: str
    unit: str = ""
    decimals: int | None = None
    mappings: Sequence[tuple[str, str, str]] = ()
    thresholds: Sequence[tuple[float | None, str]] = ()

    def properties(self) -> list[models.DynamicConfigValue]:
        """Its display, as Grafana's overrides."""
        found: list[models.DynamicConfigValue] = []
        if self.unit:
            found.append(models.DynamicConfigValue(id_val="unit", value=self.unit))
        if self.decimals is not None:
            found.append(models.DynamicConfigValue(id_val="decimals", value=self.decimals))
        if self.mappings:
            results = {
                value: {"text": shown, "color": color, "index": index}
                for index, (value, shown, color) in enumerate(self.mappings)
            }
            found.append(models.DynamicConfigValue(id_val="mappings", value=[{"type": "value", "options": results}]))
        if self.thresholds:
            steps = [{"value": value, "color": color} for value, color in self.thresholds]
            found.append(
                models.DynamicConfigValue(id_val="thresholds", value={"mode": "absolute", "steps": steps})
            )
        if self.mappings or self.thresholds:
            found.append(models.DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-background"}))
        return found


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of a table, as its first columns.

    Attributes:
        headers: label and the name of its column, in order.
        hidden: labels that are there for sorting only.
        numeric: labels whose values are numbers.
        sort: columns to sort by, the first one first.
    """

    headers: dict[str, str]
    hidden: Sequence[str] = ()
    numeric: Sequence[str] = ()
    sort: Sequence[str] = ()


def data_table(text: Text, labels: Labels, *columns: Column, size: Size = Size(WIDTH, 10)) -> table.Panel:
    """A table: one row for each set of labels, one column for each query."""
    queries = [Query(column.expression, instant=True) for column in columns]
    # With one query Grafana calls its column Value, with several Value #A, Value #B, ...
    values = ["Value"] if len(columns) == 1 else [f"Value #{reference}" for _, reference in zip(columns, _REFERENCES, strict=False)]
    order = [*labels.headers, *values]
    panel = (
        _described(table.Panel(), text, size, targets(*queries, format_=prometheus_models.PromQueryFormat.TABLE))
        .transformations(
            [
                transformation("merge", {}),
                transformation(
                    "convertFieldType",
                    {"conversions": [{"targetField": name, "destinationType": "number"} for name in labels.numeric]},
                ),
                *(
                    transformation("sortBy", {"sort": [{"field": name}]})
                    # A later sort keeps the order of the earlier one among equals.
                    for name in reversed(labels.sort)
                ),
                transformation(
                    "organize",
                    {
                        "excludeByName": dict.fromkeys(["Time", *labels.hidden], True),
                        "indexByName": {name: index for index, name in enumerate(order)},
                        "renameByName": {
                            **labels.headers,
                            **{value: column.header for value, column in zip(values, columns, strict=True)},
                        },
                    },
                ),
            ]
        )
    )
    for name in labels.numeric:
        panel = panel.override_by_name(
            labels.headers[name], [models.DynamicConfigValue(id_val="unit", value="none")]
        )
    for column in columns:
        if properties := column.properties():
            panel = panel.override_by_name(column.header, properties)
    return panel


def matrix(text: Text, expression: str, row: str, column: str, size: Size = Size(WIDTH, 10)) -> table.Panel:
    """A heat map of one figure over two labels: the darker the cell, the larger the figure."""
    cells = common_models.TableColoredBackgroundCellOptions(
        mode=common_models.TableCellBackgroundDisplayMode.GRADIENT
    )
    query = targets(Query(expression, instant=True), format_=prometheus_models.PromQueryFormat.TABLE)
    return (
        _described(table.Panel(), text, size, query)
        .decimals(2)
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.CONTINUOUS_YL_RD))
        .cell_options(cells)
        .transformations([_to_matrix(row, column)])
    )


def stacked_bars(
    text: Text, expression: str, bar: str, part: str, size: Size = Size(WIDTH, 10)
) -> barchart.Panel:
    """One bar for each value of a label, made of one part for each value of another."""
    query = targets(Query(expression, instant=True), format_=prometheus_models.PromQueryFormat.TABLE)
    return (
        _described(barchart.Panel(), text, size, query)
        .orientation(common_models.VizOrientation.HORIZONTAL)
        .stacking(common_models.StackingMode.NORMAL)
        .x_field(f"{bar}\\{part}")
        .transformations([_to_matrix(bar, part)])
    )


def _to_matrix(row: str, column: str) -> models.DataTransformerConfig:
    return transformation("groupingToMatrix", {"rowField": row, "columnField": column, "valueField": "Value"})


def transformation(name: str, options: dict[str, Any]) -> models.DataTransformerConfig:
    """One of Grafana's data transformations."""
    return models.DataTransformerConfig(id_val=name, options=options)


@dataclass(frozen=True, slots=True)
class TraceSearch(variants.Dataquery, cog.Builder[variants.Dataquery]):
    """A search in Jaeger's data source, for which the SDK has no builder.

    Attributes:
        operation: name of the root span.
        shortest: shortest duration of a trace, for example ``1s``; ``""`` for none.
        limit: most traces.
    """

    operation: str
    shortest: str = ""
    limit: int = 50
    datasource: common_models.DataSourceRef = field(default_factory=lambda: TRACES)

    def build(self) -> variants.Dataquery:
        """The query itself."""
        return self

    def to_json(self) -> dict[str, object]:
        """As Grafana stores it."""
        return {
            "datasource": self.datasource,
            "refId": "A",
            "queryType": "search",
            "service": "$service",
            "operation": self.operation,
            "minDuration": self.shortest,
            "limit": self.limit,
        }


def traces(text: Text, search: TraceSearch, size: Size = Size(WIDTH, 9)) -> table.Panel:
    """Traces, the longest first; a click opens one."""
    slowest_first = transformation("sortBy", {"sort": [{"field": "Duration", "desc": True}]})
    return _described(table.Panel(), text, size, [search]).datasource(TRACES).transformations([slowest_first])


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
    """An empty board with the variables of its data sources.

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
            dashboard.DashboardLink("Boards").type(models.DashboardLinkType.DASHBOARDS).tags(["acestep"]).as_dropdown(True)
        )
    )
    for name, label, kind, uid_ in (
        ("metrics", "Metrics", "prometheus", METRICS_UID),
        ("traces", "Traces", "jaeger", TRACES_UID),
    ):
        option = models.VariableOption(selected=True, text=label, value=uid_)
        found = found.with_variable(dashboard.DatasourceVariable(name).label(label).type(kind).current(option))
    return found.refresh(refresh) if refresh else found
