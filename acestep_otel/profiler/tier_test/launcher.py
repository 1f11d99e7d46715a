"""The start of a tier test's child process, and its environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from acestep.environment_variables import CUDA_MEMORY
from acestep_otel.profiler.children.processes import Child, Children, telemetry_environment
from acestep_otel.profiler.tier_test.plan import Trials
from acestep_otel.profiler.tier_test.protocol import Event, encode_job

ALLOCATOR_VARIABLES: Final = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Environment variables: settings of PyTorch's allocator, by its new and its old name."""
ALLOCATOR: Final = "expandable_segments:True"
"""Segments that grow, because on a small card fragmentation determines what fits."""

_MODULE: Final = "acestep_otel.profiler.tier_test.child"


def child_environment(inherited: Mapping[str, str], job: Trials, *, trace_parent: str | None = None) -> dict[str, str]:
    """The environment of a child: set before it imports PyTorch, which reads most of this once.

    Args:
        inherited: the parent's own, with the card.
        job: which card is simulated, and where telemetry goes.
        trace_parent: the parent's span in W3C form.
    """
    environment = telemetry_environment(inherited, job.options, trace_parent=trace_parent)
    environment[CUDA_MEMORY] = str(job.memory)
    if not any(variable in inherited for variable in ALLOCATOR_VARIABLES):
        environment[ALLOCATOR_VARIABLES[0]] = ALLOCATOR
    return environment


def start_child(children: Children[Event], job: Trials, environment: Mapping[str, str], timeout: float) -> Child:
    """Start a job in a process of its own.

    Args:
        children: collection that it is added to.
        job: its work.
        environment: of the process.
        timeout: seconds that each trial may take, loading included.
    """
    return children.start(_MODULE, environment, encode_job(job), timeout)
