"""The metric instruments of ``acestep_otel.semconv``, made once per meter."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final
from weakref import WeakKeyDictionary

from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Meter, Observation

from acestep_otel import semconv
from acestep_otel.semconv import MetricDefinition

MetricAttributes = Mapping[str, str | bool | int | float]
_Record = Callable[[float, MetricAttributes, Context | None], None]


class Instruments:
    """Records by metric definition, so callers never repeat a name, unit or bucket."""

    def __init__(self, meter: Meter) -> None:
        recorded = (definition for definition in semconv.METRICS.values() if not definition.observed)
        self._record = {definition.name: _create(meter, definition) for definition in recorded}

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
            counts = CurrentCounts.of(meter)
            return lambda change, attributes, _context: counts.add(definition, change, attributes)
        case "gauge":
            return meter.create_gauge(definition.name, unit=definition.unit, description=definition.meaning).set


class CurrentCounts:
    """Current numbers of something: counted here, and read whenever metrics are collected.

    In a forked child the SDK's own up-down counters keep the parent's count for ever. The child has none of the
    counted items, so its count starts at zero.
    """

    @classmethod
    def of(cls, meter: Meter) -> CurrentCounts:
        """The counts of a meter. Its instruments stay with the meter; a second one of a name would not be read."""
        if (counts := _COUNTS.get(meter)) is None:
            counts = _COUNTS.setdefault(meter, cls(meter))
        return counts

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._values: dict[str, dict[frozenset[tuple[str, str | bool | int | float]], float]] = {}

    def add(self, definition: MetricDefinition, change: float, attributes: MetricAttributes) -> None:
        """Count up or down.

        Args:
            definition: an up-down counter.
            change: by how much; a change of zero creates the count.
            attributes: of the count.
        """
        self._follow_fork()
        with self._lock:
            is_new = definition.name not in self._values
            counted = self._values.setdefault(definition.name, defaultdict(float))
            counted[frozenset(attributes.items())] += change
        if is_new:
            # Outside of the lock: a reader takes it while it holds the SDK's lock.
            observe(self._meter, definition, lambda _: self._read(definition.name))

    def _read(self, name: str) -> Iterator[Observation]:
        self._follow_fork()
        with self._lock:
            values = list(self._values.get(name, {}).items())
        for attributes, value in values:
            yield Observation(value, dict(attributes))

    def _follow_fork(self) -> None:
        if self._process != os.getpid():
            self._start_afresh()


_COUNTS: Final[WeakKeyDictionary[Meter, CurrentCounts]] = WeakKeyDictionary()


def observe(
    meter: Meter, definition: MetricDefinition, *read: Callable[[CallbackOptions], Iterable[Observation]]
) -> None:
    """Register the reader of an observed metric, which is called whenever metrics are collected.

    Args:
        meter: of the instrument.
        definition: a gauge, a counter or an up-down counter.
        read: returns the present values, one for each set of attributes.
    """
    create = {
        "gauge": meter.create_observable_gauge,
        "counter": meter.create_observable_counter,
        "up_down_counter": meter.create_observable_up_down_counter,
    }[definition.kind]
    create(definition.name, list(read), definition.unit, definition.meaning)
