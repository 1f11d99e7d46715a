"""One stack for all tests of this folder: SDK, rotel, receiver, page, Prometheus; and what was run through it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from acestep import checkpoints
from tests.receivers import Received, collector, grpc_receiver
from tests.stack import scenarios
from tests.stack.exposition import Page, served
from tests.stack.prometheus import INTERVAL, Prometheus, running


@dataclass(frozen=True)
class Stack:
    """What is running."""

    prometheus: Prometheus
    received: Received
    endpoint: str
    page: Page

    def spans_of(self, job: str) -> list[Any]:
        """Spans that a process sent, as OTLP has them."""
        return [
            span
            for request in self.received.traces
            for resource in request.resource_spans
            if {pair.key: pair.value.string_value for pair in resource.resource.attributes}["service.name"] == job
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory, tiny_models: checkpoints.Models) -> Iterator[Stack]:
    """Everything was run: what has ended is in Prometheus's memory alone, a service is still scraped."""
    folder = tmp_path_factory.mktemp("stack")
    with grpc_receiver() as received, collector(received.endpoint) as (endpoint, _):
        page = Page(received)
        with (
            served(page) as address,
            running(folder, {"otel-collector": (address, "/metrics"), "otelcol": (address, "/own")}) as prometheus,
        ):
            for name in scenarios.PROFILES:
                scenarios.profile(endpoint, folder / "songs", name)
            for name in scenarios.BENCHMARKS:
                scenarios.benchmark(endpoint, folder / "songs", name)
            scenarios.tier_test(endpoint)
            for job in scenarios.ENDED:
                prometheus.wait_for(f'target_info{{job="{job}"}}')
            page.expire(*scenarios.ENDED)
            with scenarios.service(endpoint, tiny_models) as telemetry:
                for _ in range(3):
                    scenarios.serve(telemetry, tiny_models, 3)
                    page.lost += 10
                    # Two scrapes and an evaluation see each third.
                    time.sleep(2 * INTERVAL)
            yield Stack(prometheus, received, endpoint, page)
