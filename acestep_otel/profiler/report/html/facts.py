"""What a measurement was made on and asked for, as names and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from acestep_otel.profiler.report.environment import Environment
from acestep_otel.profiler.report.html.quantities import ABSENT, size


def environment_facts(environment: Environment) -> tuple[tuple[str, str], ...]:
    """Hardware first, then versions."""
    accelerators = tuple(
        (
            "Accelerator",
            f"{found.name}, {size(found.memory_bytes)}" + (f", driver {found.driver}" if found.driver else ""),
        )
        for found in environment.accelerators
    )
    return (
        *accelerators,
        ("Processor", environment.cpu),
        ("Cores", str(environment.cpu_cores)),
        ("Memory", size(environment.memory_bytes)),
        ("Operating system", environment.operating_system),
        ("Python", environment.python),
        *environment.packages.items(),
        ("Revision", _written(environment.git_revision)),
    )


def argument_facts(arguments: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Flag and value of every option, in the order given."""
    return tuple((f"--{name.replace('_', '-')}", _written(value)) for name, value in arguments.items())


def _written(value: object) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (list, tuple)):
        return " ".join(map(_written, value)) or ABSENT
    return str(value)
