"""Panels and variables that the boards have in common, over grafana-foundation-sdk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self, TypeVar

from grafana_foundation_sdk.builders import barchart, bargauge, dashboard, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog import builder as cog
from grafana_foundation_sdk.cog import variants
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as prometheus_models

from grafana.series import RATE

METRICS: Final = common_models.DataSourceRef(type_val="prometheus", uid="${metrics}")
TRACES: Final = common_models.DataSourceRef(type_val="jaeger", uid="${traces}")
METRICS_UID: Final = "prometheus"
"""Uid of the provisioned data source of metrics."""
TRACES_UID: Final = "jaeger"
"""Uid of the provisioned data source of traces."""
WIDTH: Final = 24
"""Columns of Grafana's grid."""
SEND_INTERVAL: Final = "1m"
"""How often a process sends its metrics, by default. A counter rises that often, however often it is scraped. A rate's
window has to hold several of them: otherwise it is zero in between, and quantiles are missing."""
REFERENCES: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

Target = cog.Builder[variants.Dataquery]
Steps = Sequence[tuple[float | None, str]]
"""From which value on which colour; the first value is ignored by Grafana."""
PLAIN: Final[Steps] = ((None, "blue"),)
"""One colour: without any steps Grafana draws everything above 80 in red."""


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


def described(panel: PanelBuilder, text: Text, size: Size, targets: Sequence[Target]) -> PanelBuilder:
    """Give a panel what every panel must have."""
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
class Axes:
    """What makes a matrix of a list of values.

    Attributes:
        row: label of the rows.
        column: label of the columns.
        sort: labels that order both, the first one first.
        numeric: those of them whose values are numbers.
    """

    row: str
    column: str
    sort: Sequence[str] = ()
    numeric: Sequence[str] = ()


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
    return [_target(query, reference, format_) for query, reference in zip(queries, REFERENCES, strict=False)]


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
    if RATE in query.expression:
        target = target.interval(SEND_INTERVAL)
    return target if format_ is None else target.format(format_)


def colours(steps: Steps) -> dashboard.ThresholdsConfig:
    """Steps as Grafana has them."""
    found = [models.Threshold(value=value, color=colour) for value, colour in steps]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(found)


def coloured(steps: Steps) -> models.DynamicConfigValue:
    """The same, as an override of some figures of a panel."""
    return models.DynamicConfigValue(id_val="thresholds", value=colours(steps).build().to_json())


def time_series(text: Text, *queries: Query, size: Size = Size(12)) -> timeseries.Panel:
    """Lines over time."""
    return described(timeseries.Panel(), text, size, targets(*queries)).min(0).span_nulls(False)


def stats(text: Text, *queries: Query, size: Size = Size(12, 4), decimals: float = 2) -> stat.Panel:
    """Figures in large type, one for each query."""
    return described(stat.Panel(), text, size, targets(*queries)).decimals(decimals).thresholds(colours(PLAIN))


def bars(text: Text, *queries: Query, size: Size = Size(12), steps: Steps = PLAIN) -> bargauge.Panel:
    """One horizontal bar for each series."""
    return (
        described(bargauge.Panel(), text, size, targets(*queries))
        .orientation(common_models.VizOrientation.HORIZONTAL)
        .min(0)
        .thresholds(colours(steps))
    )


def heat_map(text: Text, query: Query, size: Size = Size(12)) -> heatmap.Panel:
    """A histogram's buckets over time."""
    axis = heatmap.YAxisConfig().unit(text.unit)
    format_ = prometheus_models.PromQueryFormat.HEATMAP
    return described(heatmap.Panel(), text, size, targets(query, format_=format_)).calculate(False).y_axis(axis)


def matrix(text: Text, expression: str, axes: Axes, size: Size = Size(WIDTH, 10)) -> table.Panel:
    """A heat map of one figure over two labels: the redder the cell, the larger the figure."""
    cells = common_models.TableColoredBackgroundCellOptions(mode=common_models.TableCellBackgroundDisplayMode.GRADIENT)
    query = targets(Query(expression, instant=True), format_=prometheus_models.PromQueryFormat.TABLE)
    return (
        described(table.Panel(), text, size, query)
        .decimals(2)
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.CONTINUOUS_YL_RD))
        .cell_options(cells)
        .transformations(_to_matrix(axes))
    )


def stacked_bars(text: Text, expression: str, axes: Axes, size: Size = Size(WIDTH, 10)) -> barchart.Panel:
    """One bar for each value of a label (the row), made of one part for each value of another (the column)."""
    query = targets(Query(expression, instant=True), format_=prometheus_models.PromQueryFormat.TABLE)
    return (
        described(barchart.Panel(), text, size, query)
        .orientation(common_models.VizOrientation.HORIZONTAL)
        .stacking(common_models.StackingMode.NORMAL)
        .x_field(f"{axes.row}\\{axes.column}")
        .transformations(_to_matrix(axes))
    )


def _to_matrix(axes: Axes) -> list[models.DataTransformerConfig]:
    """Rows and columns keep the order in which they come."""
    options = {"rowField": axes.row, "columnField": axes.column, "valueField": "Value"}
    return [*in_order(axes.sort, axes.numeric), transformation("groupingToMatrix", options)]


def in_order(sort: Sequence[str], numeric: Sequence[str]) -> list[models.DataTransformerConfig]:
    """Transformations that sort a table.

    Args:
        sort: columns to sort by, the first one first.
        numeric: columns that become numbers.
    """
    conversions = [{"targetField": name, "destinationType": "number"} for name in numeric]
    return [
        transformation("convertFieldType", {"conversions": conversions}),
        # A later sort keeps the order of the earlier one among equals.
        *(transformation("sortBy", {"sort": [{"field": name}]}) for name in reversed(sort)),
    ]


def transformation(name: str, options: dict[str, Any]) -> models.DataTransformerConfig:
    """One of Grafana's data transformations."""
    return models.DataTransformerConfig(id_val=name, options=options)
