"""The metric instruments of ``acestep_otel.semconv``, made once per meter."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from opentelemetry.context import Context
from opentelemetry.metrics import Meter

from acestep_otel import semconv
from acestep_otel.semconv import MetricDefinition

MetricAttributes = Mapping[str, str | bool | int | float]
_Record = Callable[[float, MetricAttributes, Context | None], None]


class Instruments:
    """Records by metric definition, so callers never repeat a name, unit or bucket."""

    def __init__(self, meter: Meter) -> None:
        self._record = {definition.name: _create(meter, definition) for definition in semconv.METRICS.values()}

    def record(
        self,
        metric: MetricDefinition,
        value: float,
        attributes: MetricAttributes,
        context: Context | None = None,
    ) -> None:
        """Record a value; the context carries the span that an exemplar points to.

        Attributes that the metric's definition does not list are left out, which bounds its cardinality.
        """
        allowed = {name: attributes[name] for name in metric.attributes if name in attributes}
        self._record[metric.name](value, allowed, context)


def _create(meter: Meter, definition: MetricDefinition) -> _Record:
    match definition.kind:
        case "histogram":
            return meter.create_histogram(
                definition.name,
                unit=definition.unit,
                description=definition.meaning,
                explicit_bucket_boundaries_advisory=definition.buckets,
            ).record
        case "counter":
            return meter.create_counter(definition.name, unit=definition.unit, description=definition.meaning).add
        case "up_down_counter":
            return meter.create_up_down_counter(
                definition.name, unit=definition.unit, description=definition.meaning
            ).add
        case "gauge":
            return meter.create_gauge(definition.name, unit=definition.unit, description=definition.meaning).set
