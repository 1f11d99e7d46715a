"""Metrics served without a collector."""

from __future__ import annotations

import re
import socket
import threading
import time
from contextlib import closing, suppress
from http.client import HTTPConnection
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


def test_the_resource_is_on_the_page(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "studio")
    with Telemetry(prometheus_port=port) as telemetry:
        instruments = Instruments(telemetry.meter_provider.get_meter("acestep_otel"))
        instruments.record(semconv.DOCTOR_TIME, 42, {})
        assert re.search(r'^target_info\{.*service_name="studio"', fetch(port), re.MULTILINE)
        telemetry.shutdown(timeout=0)


def test_only_this_machine_can_scrape_by_default(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
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


def ask(port: int, method: str = "GET", path: str = "/metrics", agent: str = "Prometheus/3", **headers: str) -> int:
    # Closed also when the server has just gone: an open socket is a warning, and an error of whatever test runs then.
    with closing(HTTPConnection("localhost", port, timeout=5)) as connection:
        connection.request(method, path, headers={"User-Agent": agent, **headers})
        response = connection.getresponse()
        response.read()
        return response.status


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("HEAD", "/metrics", 405), ("POST", "/metrics", 405), ("GET", "/favicon.ico", 404), ("GET", "/healthz", 404),
        ("GET", "/", 404), ("GET", "/metrics", 200), ("GET", "/metrics?name[]=nothing", 200),
    ],
)  # fmt: skip
def test_there_is_one_page(port: int, method: str, path: str, status: int) -> None:
    """N23."""
    with Telemetry(prometheus_port=port) as telemetry:
        assert ask(port, method, path) == status
        telemetry.shutdown(timeout=0)


@pytest.mark.parametrize(
    ("method", "path"),
    [("HEAD", "/metrics"), ("GET", "/favicon.ico"), ("GET", "/healthz"), ("GET", "/metrics?name[]=nothing")],
)
def test_only_a_whole_scrape_ends_the_wait(port: int, method: str, path: str) -> None:
    """N23: with a probe every quarter of a second, Prometheus still gets the last values."""
    ended = threading.Event()
    pages: list[str] = []

    def probe() -> None:
        while not ended.wait(0.1):
            with suppress(OSError):
                ask(port, method, path)

    with Telemetry(prometheus_port=port) as telemetry:
        ask(port)
        instruments = Instruments(telemetry.meter_provider.get_meter("acestep_otel"))
        instruments.record(semconv.DOCTOR_TIME, 42, {})
        threading.Thread(target=probe, daemon=True).start()
        scrape = threading.Timer(1.5, lambda: (ask(port), pages.append("seen")))
        scrape.start()
        telemetry.shutdown()
        ended.set()
    scrape.join()
    assert pages == ["seen"]


@pytest.mark.parametrize("agents", [("Prometheus/3 a", "Prometheus/3 b"), ("Prometheus/3", "Prometheus/3")])
def test_everyone_who_scraped_is_waited_for_once(
    port: int, agents: tuple[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    """N23: two replicas, also of one machine, where address and agent are the same."""
    seen: list[str] = []
    with Telemetry(prometheus_port=port) as telemetry:
        for agent in agents:
            ask(port, agent=agent, **{"X-Prometheus-Scrape-Timeout-Seconds": "3"})
        timers = [
            threading.Timer(seconds, lambda agent=agent: (ask(port, agent=agent), seen.append(agent)))
            for seconds, agent in zip((0.3, 1.2), agents, strict=True)
        ]
        for timer in timers:
            timer.start()
        telemetry.shutdown()
    for timer in timers:
        timer.join()
    assert seen == list(agents)
    assert capfd.readouterr().err == ""


def test_figures_that_were_perhaps_not_seen_are_one_line(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    with Telemetry(prometheus_port=port) as telemetry:
        ask(port)
        telemetry.shutdown(timeout=1.0)
    assert capfd.readouterr().err == (
        "warning: the last figures may be missing in Prometheus: 1 that scraped this run did not scrape again in time\n"
    )


def test_a_scrape_that_broke_off_is_none(port: int) -> None:
    with Telemetry(prometheus_port=port) as telemetry:
        with socket.create_connection(("localhost", port)) as connection:
            connection.sendall(b"GET /metri")
        assert telemetry._prometheus is not None
        assert telemetry._prometheus.missed() is None
        telemetry.shutdown(timeout=0)


def test_an_ipv6_address_is_listened_on(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """N9."""
    for host in ("::1", "[::1]"):
        monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_HOST", host)
        endpoint = PrometheusEndpoint(port)
        with urlopen(f"http://[::1]:{port}/metrics", timeout=5) as response:
            assert response.status == 200
        endpoint.close()


def test_an_interface_that_is_not_this_machines_is_named(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_HOST", "203.0.113.1")
    with pytest.raises(SetupError, match="correct OTEL_EXPORTER_PROMETHEUS_HOST"):
        PrometheusEndpoint(port)
