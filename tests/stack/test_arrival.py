"""From the process to the store: unchanged through a collector, found by the doctor, scraped without a collector."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml

from acestep_otel import semconv
from acestep_otel.profiler.cli import main
from acestep_otel.profiler.telemetry.providers import Telemetry
from acestep_otel.recording.instruments import Instruments
from acestep_otel.sdk import otlp
from benchmarks.collectors import free_port
from grafana.series import label, series
from tests.receivers import Received, collector, grpc_receiver
from tests.stack.boards import ROOT
from tests.stack.conftest import Stack
from tests.stack.prometheus import Prometheus, running_with
from tests.stack.scenarios import SHORT


def contents(received: Received) -> dict[str, Any]:
    """Everything but how it was cut into requests."""
    traces = [found for request in received.traces for found in request.resource_spans]
    metrics = [found for request in received.metrics for found in request.resource_metrics]
    return {
        "resources": {
            tuple(sorted((pair.key, str(pair.value)) for pair in found.resource.attributes))
            for found in (*traces, *metrics)
        },
        "spans": sorted(
            span.SerializeToString(deterministic=True)
            for found in traces
            for scope in found.scope_spans
            for span in scope.spans
        ),
        "metrics": sorted(
            metric.SerializeToString(deterministic=True)
            for found in metrics
            for scope in found.scope_metrics
            for metric in scope.metrics
        ),
    }


def test_a_real_run_passes_through_a_collector_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same run is sent to a receiver and, through rotel, to another."""
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "600000")
    with grpc_receiver() as near, grpc_receiver() as far, collector(far.endpoint) as (endpoint, _):
        monkeypatch.setattr("acestep_otel.profiler.telemetry.providers.metric_exporter", _both("metric", near.endpoint))
        monkeypatch.setattr("acestep_otel.profiler.telemetry.providers.span_exporter", _both("span", near.endpoint))
        assert main([*SHORT, "--otlp-endpoint", endpoint, "--output-dir", str(tmp_path)]) == 0
        sent = contents(near)
        far.wait_for_spans(len(sent["spans"]), seconds=15)
        far.wait_for_metrics(len(sent["metrics"]), seconds=15)
        assert sent["spans"]
        assert sent["metrics"]
        assert contents(far) == sent


def _both(kind: str, near: str) -> Any:
    """An exporter to two places: the target, and a receiver that stands before any collector."""
    make = getattr(otlp, f"{kind}_exporter")

    def factory(target: otlp.OtlpTarget, answers: Any = None) -> Any:
        exporter = make(target, answers)
        copy = make(otlp.otlp_target(target.signal, endpoint=near, protocol="grpc"))
        export = exporter.export

        def twice(batch: Any, **options: Any) -> Any:
            copy.export(batch, **options)
            return export(batch, **options)

        exporter.export = twice
        return exporter

    return factory


def test_the_doctor_finds_what_it_sent(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    """Through a real collector into a real Prometheus; Jaeger is not among the packages of any registry."""
    arguments = ("--otlp-endpoint", stack.endpoint, "--prometheus-url", stack.prometheus.url)
    assert main(["doctor", *arguments]) == 0
    said = capsys.readouterr().out
    assert f"✓  Prometheus {stack.prometheus.url}: acestep_doctor_time_seconds found" in said
    assert "✗" not in said


def test_the_doctor_names_a_prometheus_that_does_not_scrape(
    tmp_path: Path, stack: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_with(tmp_path, {"scrape_configs": []}) as empty:
        arguments = ("--otlp-endpoint", stack.endpoint, "--prometheus-url", empty.url, "--wait", "1")
        assert main(["doctor", *arguments]) == 1
    assert "→  check Status > Targets there" in capsys.readouterr().out


def documented_scraping(port: int) -> dict[str, Any]:
    """The configuration that docs/dashboards.md shows, for a free port."""
    text = (ROOT / "docs" / "dashboards.md").read_text("utf-8")
    (fragment,) = re.findall(r"```yaml\n(scrape_configs:.*?)```", text, re.DOTALL)
    assert ":9464]" in fragment
    return dict(yaml.safe_load(fragment.replace(":9464]", f":{port}]")))


def test_a_run_is_scraped_without_a_collector_to_its_end(tmp_path: Path) -> None:
    """A process of its own, which is over when Prometheus is asked."""
    port = free_port()
    with running_with(tmp_path, documented_scraping(port)) as prometheus:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "acestep_otel.profiler", *SHORT),
                *("--prometheus-port", str(port), "--output-dir", str(tmp_path)),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        shown = float(re.search(r"Wall Time \(total\) +([\d.]+)", done.stdout).group(1))
        row = label(semconv.PROFILE_ROW)
        assert _wall(prometheus, row) == pytest.approx(shown, abs=0.006)


def _wall(prometheus: Prometheus, row: str) -> float:
    found = prometheus.wait_for(f'last_over_time({series(semconv.PROFILE_DURATION)}{{{row}="wall"}}[5m])')
    assert {sample["metric"]["job"] for sample in found} == {"acestep"}
    return float(found[0]["value"][1])


def test_labels_are_the_same_with_and_without_a_collector(stack: Stack) -> None:
    """So that boards work on both."""
    port = free_port()
    with Telemetry(prometheus_port=port) as telemetry:
        instruments = Instruments(telemetry.meter_provider.get_meter("acestep_otel"))
        attributes = dict.fromkeys(semconv.REQUEST_DURATION.attributes, "it")
        instruments.record(semconv.REQUEST_DURATION, 1, attributes)
        with urlopen(f"http://localhost:{port}/metrics", timeout=5) as response:
            page = response.read().decode()
        telemetry.shutdown(timeout=0)
    (line,) = re.findall(rf"^{series(semconv.REQUEST_DURATION, 'count')}\{{(.*)\}}", page, re.MULTILINE)
    served = set(re.findall(r"(\w+)=", line))
    # An error's class is on failures alone; job and instance are the scrape's here.
    through = {name for s in stack.prometheus.query(series(semconv.REQUEST_DURATION, "count")) for name in s["metric"]}
    assert served == through - {"__name__", "job", "instance", "host_name"}
