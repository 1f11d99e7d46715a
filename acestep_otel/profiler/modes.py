"""Every mode that can be run, by its name on the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from acestep_otel.profiler.benchmark.mode import benchmark
from acestep_otel.profiler.language_model_modes import create_sample, format_sample, understand
from acestep_otel.profiler.options import Mode, Options
from acestep_otel.profiler.run.profile import profile
from acestep_otel.profiler.telemetry.providers import Telemetry
from acestep_otel.profiler.tier_test.mode import tier_test

MODES: Final[Mapping[Mode, Callable[[Options, Telemetry], None]]] = {
    "profile": profile,
    "benchmark": benchmark,
    "tier-test": tier_test,
    "understand": understand,
    "create_sample": create_sample,
    "format_sample": format_sample,
}
