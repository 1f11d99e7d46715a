"""The size of a batch of metrics."""

from __future__ import annotations

from opentelemetry.sdk.metrics.export import MetricsData


def count_data_points(batch: MetricsData) -> int:
    """The number of series with a value."""
    return sum(
        len(metric.data.data_points)
        for resource in batch.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    )
