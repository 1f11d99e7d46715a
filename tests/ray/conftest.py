"""A real Ray cluster of three nodes on this machine; the tests are skipped without Ray (``make test-ray``)."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# A dead node is noticed within seconds, not within half a minute.
_QUICK = {
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 300,
    "health_check_failure_threshold": 3,
    "health_check_initial_delay_ms": 0,
}


@contextmanager
def running_cluster(environment: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that runs nothing, and two nodes for one actor each."""
    import ray
    from ray.cluster_utils import Cluster

    environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
    environment.setenv("RAY_AUTH_MODE", "disabled")
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            environment.delenv(name)
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    found = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": _QUICK},
    )
    found.workers = [found.add_node(num_cpus=1) for _ in range(2)]
    try:
        yield found
    finally:
        ray.shutdown()
        found.shutdown()


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """One for each test, which may remove its nodes."""
    monkeypatch.chdir(tmp_path)
    with running_cluster(monkeypatch) as found:
        yield found
