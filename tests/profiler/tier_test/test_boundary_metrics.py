"""The boundaries of a tier test as metrics: those of its summaries."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from acestep_otel import semconv
from acestep_otel.profiler.tier_test.boundary import batch_boundary, boundary
from acestep_otel.profiler.tier_test.boundary_metrics import record_batch_boundary, record_boundary
from acestep_otel.profiler.tier_test.trials import GIB
from acestep_otel.recording.instruments import Instruments
from tests.profiler.tier_test.tier_rows import row, trial


class Recorded:
    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.instruments = Instruments(MeterProvider([self.reader]).get_meter("test"))

    def points(self) -> list[tuple[Any, dict[str, Any]]]:
        data = self.reader.get_metrics_data()
        if data is None:
            return []
        (metric,) = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics]
        return [(point.value, dict(point.attributes)) for point in metric.data.data_points]


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


def test_the_smallest_card_of_each_capability(recorded: Recorded) -> None:
    rows = [row(12, "no-quant", "out_of_memory"), row(16, "no-quant"), row(24)]
    record_boundary(recorded.instruments, boundary(rows))
    found = {attributes[semconv.TIER_CAPABILITY]: value for value, attributes in recorded.points()}
    assert found == {c.name: c.minimum.trial.memory * GIB for c in boundary(rows)}
    assert set(found.values()) == {16 * GIB, 24 * GIB}


def test_a_capability_that_no_card_has_is_absent(recorded: Recorded) -> None:
    record_boundary(recorded.instruments, boundary([row(24, status="out_of_memory")]))
    assert recorded.points() == []


def test_the_largest_batch_with_and_without_the_language_model(recorded: Recorded) -> None:
    rows = [
        *(row(8, "batch-noLM", batch_size=size) for size in (1, 2)),
        row(8, "batch-noLM", "out_of_memory", batch_size=4),
        row(8, "batch-LM", "out_of_memory", batch_size=1),
    ]
    cards = batch_boundary(rows, {trial(8).tier: (2, 1)})
    record_batch_boundary(recorded.instruments, cards)
    card = {semconv.TIER_NAME: trial(8).tier, semconv.TIER_MEMORY: 8}
    assert recorded.points() == [
        (2, {**card, semconv.TIER_WITH_LM: False}),
        (0, {**card, semconv.TIER_WITH_LM: True}),
    ]


def test_what_was_not_tried_is_absent(recorded: Recorded) -> None:
    rows = [row(8, "batch-noLM", batch_size=1)]
    record_batch_boundary(recorded.instruments, batch_boundary(rows, {trial(8).tier: (2, 1)}))
    assert [attributes[semconv.TIER_WITH_LM] for _, attributes in recorded.points()] == [False]
