"""An SDK in memory, and the instrumentor on top of it, for tests that look at spans and metrics."""

from __future__ import annotations

from typing import Any

from acestep_otel.semconv import MetricDefinition
from acestep_otel.testing import TelemetryCapture
from acestep_otel.testing import tree as tree


class Traced(TelemetryCapture):
    """What users test with, asked by the definitions of ``semconv``."""

    def metric(self, name: MetricDefinition | str) -> list[Any]:
        return super().metric(name if isinstance(name, str) else name.name)
