"""Tables: labels first, then one column for each query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import table
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as prometheus_models

from grafana.panels import (
    REFERENCES,
    WIDTH,
    Query,
    Size,
    Steps,
    Text,
    coloured,
    described,
    in_order,
    targets,
    transformation,
)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of figures in a table.

    Attributes:
        header: its name.
        expression: PromQL; all columns of a table have the same labels.
        unit: Grafana's name for it; ``""`` is the panel's.
        mappings: text and colour for single values.
        ranges: text and colour for ranges of values.
        thresholds: from which value on which colour.
    """

    header: str
    expression: str
    unit: str = ""
    decimals: int | None = None
    mappings: Sequence[tuple[str, str, str]] = ()
    ranges: Sequence[tuple[float, float, str]] = ()
    thresholds: Steps = ()

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
        if self.ranges:
            spans = [
                {"type": "range", "options": {"from": first, "to": end, "result": {"text": shown, "index": index}}}
                for index, (first, end, shown) in enumerate(self.ranges)
            ]
            found.append(models.DynamicConfigValue(id_val="mappings", value=spans))
        if self.thresholds:
            found.append(coloured(self.thresholds))
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
    values = (
        ["Value"]
        if len(columns) == 1
        else [f"Value #{reference}" for _, reference in zip(columns, REFERENCES, strict=False)]
    )
    order = [*labels.headers, *values]
    panel = described(
        table.Panel(), text, size, targets(*queries, format_=prometheus_models.PromQueryFormat.TABLE)
    ).transformations(
        [
            transformation("merge", {}),
            *in_order(labels.sort, labels.numeric),
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
    for name in labels.numeric:
        panel = panel.override_by_name(labels.headers[name], [models.DynamicConfigValue(id_val="unit", value="none")])
    for column in columns:
        if properties := column.properties():
            panel = panel.override_by_name(column.header, properties)
    return panel
