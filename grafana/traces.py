"""Traces, searched in Jaeger."""

from __future__ import annotations

from dataclasses import dataclass

from grafana_foundation_sdk.builders import table
from grafana_foundation_sdk.cog import builder as cog
from grafana_foundation_sdk.cog import variants

from grafana.panels import TRACES, WIDTH, Size, Text, described, transformation


@dataclass(frozen=True, slots=True)
class JaegerSearch(variants.Dataquery):
    """A search as Grafana's Jaeger data source stores it; the SDK has no model of it.

    Attributes:
        operation: name of a span; ``""`` for any.
        shortest: shortest duration of a trace, for example ``1s``; ``""`` for any.
        limit: most traces.
    """

    operation: str
    shortest: str
    limit: int

    def to_json(self) -> dict[str, object]:
        """The query."""
        return {
            "datasource": TRACES,
            "refId": "A",
            "queryType": "search",
            "service": "$service",
            "operation": self.operation,
            "minDuration": self.shortest,
            "limit": self.limit,
        }


class TraceSearch(cog.Builder[variants.Dataquery]):
    """Builds a search (``JaegerSearch``)."""

    def __init__(self, operation: str = "", *, shortest: str = "", limit: int = 50) -> None:
        self._search = JaegerSearch(operation, shortest, limit)

    def build(self) -> variants.Dataquery:
        """The search."""
        return self._search


def traces(text: Text, search: TraceSearch, size: Size = Size(WIDTH, 9)) -> table.Panel:
    """Traces, the longest first; a click opens one."""
    slowest_first = transformation("sortBy", {"sort": [{"field": "Duration", "desc": True}]})
    return described(table.Panel(), text, size, [search]).datasource(TRACES).transformations([slowest_first])
