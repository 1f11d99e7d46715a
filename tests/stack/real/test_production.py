"""An agent, two gateways and the stores, with the servers themselves: what is kept, and what each failure loses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from acestep_otel import semconv
from grafana.series import series
from tests.stack.boards import ROOT
from tests.stack.prometheus import Prometheus
from tests.stack.real.conftest import certificate
from tests.stack.real.network import Network, wait_until
from tests.stack.real.sender import PLANTED, SPANS
from tests.stack.real.services import Jaeger, Running, asked, collector, composed

CLOSE = 150
"""Seconds that anything is given: retries are up to half a minute apart, and the machine may be busy."""
METRICS = "http://prometheus:9090/api/v1/otlp/v1/metrics"
ALWAYS_KEPT = ("error", "oom", "slow", "forced")
QUICKLY = (
    "processors.tail_sampling.decision_wait=3s",
    "exporters.load_balancing.resolver.dns.interval=1s",
    "connectors.span_metrics.metrics_flush_interval=1s",
)
"""What would have a test wait: the longest request is shorter here."""


@dataclass(frozen=True)
class Production:
    """What is running."""

    hosts: Network
    agent: Running
    gateways: list[Running]
    stores: dict[str, Running]
    prometheus: Prometheus
    jaeger: Jaeger

    def send(self, *amounts: str) -> dict[str, list[str]]:
        """Let a process on the agent's host send; returns the trace ids of each kind."""
        words = (sys.executable, "-m", "tests.stack.real.sender", "--endpoint", "http://127.0.0.1:4317", *amounts)
        done = subprocess.run(self.agent.host.command(*words), cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def whole(self, trace_ids: list[str]) -> int:
        """How many of them are in the trace store with all their spans."""
        return sum(len(self.jaeger.trace(trace_id)) == SPANS for trace_id in trace_ids)

    def wait_for(self, trace_ids: list[str]) -> None:
        """All of them are there, whole."""
        wait_until(lambda: self.whole(trace_ids) == len(trace_ids), CLOSE, f"{len(trace_ids)} whole traces")


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files for the gateways, and for who trusts them."""
    cert, key, authority = certificate(tmp_path_factory.mktemp("tls"), "gateway")
    return {"/tls/cert.pem": cert, "/tls/key.pem": key, "/tls/ca.pem": authority}


@pytest.fixture(scope="module")
def production(hosts: Network, tls: dict[str, Path]) -> Production:
    stores = {name: composed(hosts, name).start() for name in ("jaeger", "prometheus")}
    gateways = [gateway(hosts, f"gateway-{number}", tls) for number in (1, 2)]
    hosts.alias("gateway", *(one.host for one in gateways))
    for one in gateways:
        one.start()
    environment = {"GATEWAY_ENDPOINT": "gateway:4317", "GATEWAY_CA_FILE": "/tls/ca.pem", "METRICS_ENDPOINT": METRICS}
    health = "extensions.health_check.endpoint=0.0.0.0:13133"
    agent = collector(hosts, "agent", "agent", environment, health, files=tls).start()
    jaeger, prometheus = Jaeger(stores["jaeger"].url(16686)), asked(stores["prometheus"])
    return Production(hosts, agent, gateways, stores, prometheus, jaeger)


def gateway(hosts: Network, name: str, tls: dict[str, Path], peers: str = "gateway", **environment: str) -> Running:
    return collector(
        hosts,
        name,
        "gateway",
        {
            "TLS_CERT_FILE": "/tls/cert.pem",
            "TLS_KEY_FILE": "/tls/key.pem",
            "GATEWAY_PEERS": peers,
            "TRACES_ENDPOINT": "jaeger:4317",
            "TRACES_INSECURE": "true",
            "METRICS_ENDPOINT": METRICS,
            **environment,
        },
        *QUICKLY,
        files=tls,
    )


@pytest.fixture(autouse=True)
def everything_works(production: Production) -> Iterator[None]:
    """A test leaves it as it found it."""
    yield
    production.hosts.alias("gateway", *(one.host for one in production.gateways))
    for one in (*production.stores.values(), *production.gateways, production.agent):
        if one.server is None or one.server.process.poll() is not None:
            one.start()


def test_each_request_is_counted_once(production: Production) -> None:
    """Two services, several sends: whichever way they went, nothing is there twice."""
    production.send("requests=17", "--exports", "4", "--job", "counted")
    production.send("requests=26", "--exports", "4", "--job", "counted", "--instance", "two")
    (sample,) = production.prometheus.wait_for(f'sum({series(semconv.REQUESTS)}{{job="counted"}}) == 43', CLOSE)
    assert sample["value"][1] == "43"
    assert len(production.prometheus.query(f'{series(semconv.REQUESTS)}{{job="counted"}}')) == 2


def test_sampling_keeps_whole_traces_of_what_matters_and_a_share_of_the_rest(production: Production) -> None:
    sent = production.send(*(f"{kind}=10" for kind in ALWAYS_KEPT), "ordinary=100", "cancelled=60", "--job", "sampled")
    production.wait_for([trace_id for kind in ALWAYS_KEPT for trace_id in sent[kind]])
    rest = sent["ordinary"] + sent["cancelled"]
    kept = [len(production.jaeger.trace(trace_id)) for trace_id in rest]
    assert set(kept) <= {0, SPANS}
    assert 1 <= sum(map(bool, kept)) <= len(rest) // 3
    calls = f'sum(traces_span_metrics_calls_total{{job="sampled",span_name="{semconv.GENERATE_MUSIC}"}})'
    production.prometheus.wait_for(f"{calls} == 200", CLOSE)


def test_no_text_of_a_user_gets_through(production: Production) -> None:
    """Neither in an attribute, nor in an exception's message, nor in a status."""
    (trace_id,) = production.send("error=1")["error"]
    production.wait_for([trace_id])
    stored = json.dumps(production.jaeger.trace(trace_id))
    assert PLANTED not in stored
    assert "exception.type" in stored


def test_messages_of_exceptions_are_kept_on_request(production: Production, tls: dict[str, Path]) -> None:
    """And attributes that are not on the list still are not."""
    hosts = production.hosts
    verbose = gateway(hosts, "verbose", tls, peers="verbose", KEEP_ERROR_TEXT="true")
    address = verbose.host.address
    cert, key, authority = certificate(hosts.folder / "verbose-tls", address)
    for path, file in (("/tls/cert.pem", cert), ("/tls/key.pem", key)):
        verbose.host.mount(file, path)
    verbose.start()
    done = subprocess.run(
        [sys.executable, "-m", "tests.stack.real.sender", "--endpoint", f"https://{address}:4317", "error=1"],
        cwd=ROOT, env={**os.environ, "OTEL_EXPORTER_OTLP_CERTIFICATE": str(authority)}, capture_output=True, check=True,
    )  # fmt: skip
    (trace_id,) = json.loads(done.stdout)["error"]
    production.wait_for([trace_id])
    texts = {
        tag["key"]
        for span in production.jaeger.trace(trace_id)
        for tag in (*span["tags"], *(field for log in span["logs"] for field in log["fields"]))
        if PLANTED in str(tag["value"])
    }
    assert texts == {"exception.message", "otel.status_description"}
    verbose.stop()


def test_a_gateway_that_dies_takes_nothing_with_it_that_others_send_it(production: Production) -> None:
    """Killed while its name still leads to it; the name goes later. What reaches the other one twice is bounded."""
    dead, left = production.gateways
    before = left.figure("otelcol_receiver_accepted_spans", receiver="otlp/peers")
    dead.kill()
    sent = production.send("error=30", "ordinary=70")
    # One retry at least while the name is still there.
    wait_until(lambda: "Will retry" in left.server.output, CLOSE, "the survivor tries again")
    production.hosts.alias("gateway", left.host)
    production.wait_for(sent["error"])
    accepted = left.figure("otelcol_receiver_accepted_spans", receiver="otlp/peers") - before
    assert 100 * SPANS <= accepted <= 2 * 100 * SPANS


def test_gateways_that_are_stopped_lose_nothing(production: Production) -> None:
    """SIGTERM while traces wait for their decision: it is made at once."""
    sent = production.send("error=20")
    for one in production.gateways:
        one.stop()
    for one in production.gateways:
        one.start()
    production.wait_for(sent["error"])


def test_a_killed_agent_loses_nothing_that_it_had_received(production: Production) -> None:
    for one in (*production.gateways, production.stores["prometheus"]):
        one.stop()
    sent = production.send("error=20", "ordinary=20", "requests=11", "--exports", "3", "--job", "queued")
    queued = "otelcol_exporter_queue_size"
    wait_until(lambda: production.agent.figure(queued, exporter="otlp_grpc/gateway") > 0, CLOSE, "a queue")
    wait_until(lambda: production.agent.figure(queued, exporter="otlp_http/metrics") > 0, CLOSE, "a queue")
    production.agent.kill()
    production.stores["prometheus"].start()
    for one in production.gateways:
        one.start()
    production.agent.start()
    production.wait_for(sent["error"])
    production.prometheus.wait_for(f'{series(semconv.REQUESTS)}{{job="queued"}} == 11', CLOSE)


def test_a_trace_store_that_is_down_loses_nothing(production: Production) -> None:
    production.stores["jaeger"].stop()
    sent = production.send("error=10")
    retrying = lambda: any("Will retry" in one.server.output for one in production.gateways)  # noqa: E731
    wait_until(retrying, CLOSE, "a gateway tries again")
    production.stores["jaeger"].start()
    production.wait_for(sent["error"])


def test_an_agent_that_does_not_trust_a_gateway_sends_it_nothing(production: Production) -> None:
    _, _, stranger = certificate(production.hosts.folder / "stranger", "gateway")
    environment = {"GATEWAY_ENDPOINT": "gateway:4317", "GATEWAY_CA_FILE": "/ca.pem", "METRICS_ENDPOINT": METRICS}
    health = "extensions.health_check.endpoint=0.0.0.0:13133"
    wary = collector(production.hosts, "wary", "agent", environment, health, files={"/ca.pem": stranger}).start()
    words = (sys.executable, "-m", "tests.stack.real.sender", "--endpoint", "http://127.0.0.1:4317", "error=1")
    subprocess.run(wary.host.command(*words), cwd=ROOT, check=True, capture_output=True)
    wait_until(lambda: "certificate signed by unknown authority" in wary.server.output, CLOSE, "the refusal")
    assert wary.figure("otelcol_exporter_sent_spans") == 0
    wary.stop()
