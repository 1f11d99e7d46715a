"""The SDK's processors that send in batches, for every value that the specification allows.

The SDK refuses some of them: a queue that is smaller than its own default for a batch, and a delay of zero.
"""

from __future__ import annotations

from typing import Final

from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk.environment_variables import (
    OTEL_BSP_MAX_EXPORT_BATCH_SIZE,
    OTEL_BSP_MAX_QUEUE_SIZE,
    OTEL_BSP_SCHEDULE_DELAY,
    OTEL_METRIC_EXPORT_INTERVAL,
)
from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from acestep_otel.sdk.variables import count, milliseconds

_QUEUE_SIZE: Final = 2048
_BATCH_SIZE: Final = 512
_SCHEDULE_DELAY: Final = 5_000
_EXPORT_INTERVAL: Final = 60_000
_SHORTEST: Final = 1
"""Milliseconds that stand for none."""


def batch_span_processor(
    exporter: SpanExporter, *, schedule_delay: int = _SCHEDULE_DELAY, meter_provider: MeterProvider | None = None
) -> BatchSpanProcessor:
    """Sends spans in batches, as the ``OTEL_BSP_*`` variables say.

    Args:
        exporter: sends them.
        schedule_delay: milliseconds, where ``OTEL_BSP_SCHEDULE_DELAY`` is not set.
        meter_provider: of the SDK's own metrics.

    Raises:
        SetupError: a variable holds no number.
    """
    queue = count(OTEL_BSP_MAX_QUEUE_SIZE, _QUEUE_SIZE)
    return BatchSpanProcessor(
        exporter,
        max_queue_size=queue,
        max_export_batch_size=count(OTEL_BSP_MAX_EXPORT_BATCH_SIZE, min(_BATCH_SIZE, queue)),
        schedule_delay_millis=max(_SHORTEST, milliseconds(OTEL_BSP_SCHEDULE_DELAY, schedule_delay)),
        meter_provider=meter_provider,
    )


def periodic_metric_reader(exporter: MetricExporter) -> PeriodicExportingMetricReader:
    """Sends metrics again and again, as the ``OTEL_METRIC_EXPORT_*`` variables say.

    Raises:
        SetupError: a variable holds no number.
    """
    interval = milliseconds(OTEL_METRIC_EXPORT_INTERVAL, _EXPORT_INTERVAL)
    return PeriodicExportingMetricReader(exporter, export_interval_millis=max(_SHORTEST, interval))
