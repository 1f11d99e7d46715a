"""Metrics served without a collector."""

from __future__ import annotations

import re
import threading
import time
from urllib.request import urlopen

import pytest
from opentelemetry.metrics import Observation

from acestep_otel import semconv
from acestep_otel.errors import SetupError
from acestep_otel.profiler.cli import main
from acestep_otel.profiler.telemetry.prometheus import PrometheusEndpoint
from acestep_otel.profiler.telemetry.providers import Telemetry
from acestep_otel.recording.instruments import Instruments, observe
from benchmarks.collectors import free_port
from grafana.series import names, series


def fetch(port: int) -> str:
    with urlopen(f"http://localhost:{port}/metrics", timeout=5) as response:
        return str(response.read().decode())


@pytest.fixture
def port() -> int:
    return free_port()


def test_every_metric_has_the_name_that_the_boards_ask_for(port: int) -> None:
    with Telemetry(prometheus_port=port) as telemetry:
        meter = telemetry.meter_provider.get_meter("acestep_otel")
        instruments = Instruments(meter)
        for metric in semconv.METRICS.values():
            if metric.observed:
                observe(meter, metric, lambda _: [Observation(1)])
            else:
                instruments.record(metric, 1, {semconv.REQUEST_MODEL: "it"})
        served = set(re.findall(r"^(\w+)", fetch(port), re.MULTILINE))
        telemetry.shutdown(timeout=0)
    for metric in semconv.METRICS.values():
        wanted = {series(metric, "bucket")} if metric.kind == "histogram" else set(names(metric))
        assert wanted & served


def test_who_it_comes_from_is_on_the_page(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "studio")
    with Telemetry(prometheus_port=port) as telemetry:
        instruments = Instruments(telemetry.meter_provider.get_meter("acestep_otel"))
        instruments.record(semconv.DOCTOR_TIME, 42, {})
        assert re.search(r'^target_info\{.*service_name="studio"', fetch(port), re.MULTILINE)
        telemetry.shutdown(timeout=0)


def test_only_this_machine_can_ask_unless_told_otherwise(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = PrometheusEndpoint(port)
    assert endpoint.address == ("127.0.0.1", port)
    endpoint.close()
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_HOST", "0.0.0.0")
    endpoint = PrometheusEndpoint(port)
    assert endpoint.address == ("0.0.0.0", port)
    endpoint.close()


def test_a_port_that_is_taken_is_one_line_and_exit_code_2(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    with Telemetry(prometheus_port=port) as telemetry:
        with pytest.raises(SetupError, match=f"--prometheus-port {port}: cannot listen on localhost:{port}"):
            Telemetry(prometheus_port=port)
        assert main(["--tiny", "--prometheus-port", str(port)]) == 2
        telemetry.shutdown(timeout=0)
    assert "choose another port" in capsys.readouterr().err


def test_the_port_is_free_again_afterwards(port: int) -> None:
    for _ in range(2):
        with Telemetry(prometheus_port=port):
            fetch(port)
            scrape = threading.Timer(0.1, fetch, [port])
            scrape.start()
        scrape.join()


def test_the_last_figures_are_seen_also_of_a_run_shorter_than_a_scrape_interval(port: int) -> None:
    pages: list[str] = []
    with Telemetry(prometheus_port=port) as telemetry:
        instruments = Instruments(telemetry.meter_provider.get_meter("acestep_otel"))
        instruments.record(semconv.DOCTOR_TIME, 42, {})
        scrape = threading.Timer(0.5, lambda: pages.append(fetch(port)))
        scrape.start()
        telemetry.shutdown()
    scrape.join()
    assert "acestep_doctor_time_seconds 42.0" in pages[0]


def test_who_does_not_ask_is_waited_for_within_the_bound(port: int) -> None:
    with Telemetry(prometheus_port=port) as telemetry:
        started = time.monotonic()
        telemetry.shutdown(timeout=1.5)
    assert 0.5 < time.monotonic() - started < 1.5 + 3


def test_a_disabled_sdk_listens_nowhere(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with Telemetry(prometheus_port=port), pytest.raises(OSError, match="refused"):
        fetch(port)
