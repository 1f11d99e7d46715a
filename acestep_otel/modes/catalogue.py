"""Every mode that can be run, by its name on the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from acestep_otel.modes.benchmark import benchmark
from acestep_otel.modes.create_sample import create_sample
from acestep_otel.modes.format_sample import format_sample
from acestep_otel.modes.options import Mode, Options
from acestep_otel.modes.profile import profile
from acestep_otel.modes.tier_test.mode import tier_test
from acestep_otel.modes.understand import understand
from acestep_otel.providers import Telemetry

MODES: Final[Mapping[Mode, Callable[[Options, Telemetry], None]]] = {
    "profile": profile,
    "benchmark": benchmark,
    "tier-test": tier_test,
    "understand": understand,
    "create_sample": create_sample,
    "format_sample": format_sample,
}
