"""``docker-compose.yml`` with the servers themselves: what real runs send arrives, and is found.

With ``ACESTEP_STACK_RUNNING`` set, the stack that ``docker compose up`` started on this machine is asked instead.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen
from uuid import uuid4

import pytest

from acestep_otel import semconv
from acestep_otel.profiler.cli import main
from acestep_otel.profiler.report.breakdown import Breakdown, breakdown_rows
from benchmarks.collectors import free_port
from grafana.series import label, names, series
from tests.stack.boards import (
    BOARDS,
    ROOT,
    Expression,
    data_sources,
    filled_in,
    link_expressions,
    load,
    panel_expressions,
    panels,
    rule_expressions,
    rules,
    values_of_variable,
)
from tests.stack.exposition import own_figures
from tests.stack.grafana_library import Shown, shown
from tests.stack.prometheus import Prometheus
from tests.stack.real.conftest import skipped_without
from tests.stack.real.network import network, wait_until
from tests.stack.real.services import Jaeger, Running, asked, composed, hurried

RUNNING = "ACESTEP_STACK_RUNNING"
SHORT = ("--tiny", "--no-warmup", "--duration", "10", "--inference-steps", "1", "--no-progress")
PROFILES = ("before", "before")
BENCHMARK, TIERS, SERVICE = "bench", "tiers", "studio"
CLOSE = 120
"""Seconds that anything is given to arrive on a loaded machine."""


@dataclass(frozen=True)
class Local:
    """The stack of one machine.

    Attributes:
        services: its servers, to be stopped and started; none of a stack that was there before.
    """

    grpc: str
    http: str
    prometheus: Prometheus
    jaeger: Jaeger
    services: dict[str, Running]

    def traces(self, job: str, operation: str = semconv.GENERATE_MUSIC) -> list[list[dict[str, Any]]]:
        """Spans of each trace of a run."""
        asked_for = urlencode({"service": job, "operation": operation, "limit": 100, "lookback": "1h"})
        with urlopen(f"{self.jaeger.url}/api/traces?{asked_for}", timeout=20) as response:
            return [trace["spans"] for trace in json.load(response)["data"]]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    """The stack, started in the order of the compose file."""
    if RUNNING in os.environ:
        yield Local(*(f"http://localhost:{port}" for port in (4317, 4318)), Prometheus("http://localhost:9090"),
                    Jaeger("http://localhost:16686"), {})  # fmt: skip
        return
    folder = tmp_path_factory.mktemp("local")
    with skipped_without(), network(folder) as hosts:
        services = {
            name: composed(hosts, name, {"/etc/prometheus": hurried(folder)} if name == "prometheus" else None)
            for name in ("jaeger", "prometheus", "collector")
        }
        for service in services.values():
            service.start()
        collector, prometheus = services["collector"], services["prometheus"]
        jaeger = Jaeger(services["jaeger"].url(16686))
        yield Local(collector.url(4317), collector.url(4318), asked(prometheus), jaeger, services)


@pytest.fixture(scope="module")
def sent(local: Local, tmp_path_factory: pytest.TempPathFactory) -> Local:
    """Every kind of run has sent to it, all at the same time, and is over; the service as well."""
    folder = tmp_path_factory.mktemp("songs")
    thinking = ("--thinking", "--use-cot-metas", "--detail", "token")
    runs = [
        *((name, (*SHORT, *thinking)) for name in PROFILES),
        (BENCHMARK, (*SHORT, "--mode", "benchmark", "--batch-size", "1")),
        (TIERS, (*SHORT, "--mode", "tier-test", "--tiers", "8", "--tier-boundary")),
    ]
    with ThreadPoolExecutor(len(runs) + 1) as threads:
        serving = threads.submit(serve, local.grpc, folder)
        done = [threads.submit(run, local.grpc, folder / str(place), *runs[place]) for place in range(len(runs))]
        for one in (*done, serving):
            one.result()
    for job in {*PROFILES, BENCHMARK, SERVICE}:
        local.prometheus.wait_for(f'{series(semconv.REQUESTS)}{{job="{job}"}}', CLOSE)
    local.prometheus.wait_for(f'{series(semconv.TIER_STATUS)}{{job="{TIERS}"}}', CLOSE)
    return local


def run(endpoint: str, folder: Path, name: str, arguments: tuple[str, ...], **more: str) -> None:
    """A run of the command line, in a process of its own, with more variables of its environment."""
    folder.mkdir()
    variables = {"OTEL_SERVICE_NAME": name, "OMP_NUM_THREADS": "1", **more}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "acestep_otel.profiler", *arguments),
            *("--otlp-endpoint", endpoint, "--output-dir", str(folder)),
        ],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=CLOSE * 2,
    )
    assert done.returncode == 0, done.stderr


def serve(endpoint: str, folder: Path) -> None:
    """The example service under a short load, to its end."""
    port = free_port()
    environment = {
        **os.environ,
        "OTEL_SERVICE_NAME": SERVICE,
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(folder),
    }
    with (folder / "service.log").open("w") as log:
        service = subprocess.Popen(
            [sys.executable, "-m", "examples.serving", "--tiny", "--port", str(port)],
            cwd=ROOT, env=environment, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            wait_until(lambda: _answers(f"http://127.0.0.1:{port}/healthz"), CLOSE, "the service answers")
            for seed in ("1", "2"):
                subprocess.run(
                    [
                        *(sys.executable, "-m", "examples.serving.load", "--url", f"http://127.0.0.1:{port}"),
                        *("--clients", "3", "--seconds", "5", "--seed", seed),
                    ],
                    cwd=ROOT, check=True, timeout=CLOSE * 2, capture_output=True,
                )  # fmt: skip
        finally:
            service.terminate()
            service.wait(60)


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_the_doctor_finds_span_and_metric(protocol: str, local: Local, capsys: pytest.CaptureFixture[str]) -> None:
    endpoint = local.grpc if protocol == "grpc" else local.http
    stores = ("--jaeger-url", local.jaeger.url, "--prometheus-url", local.prometheus.url)
    assert main(["doctor", "--otlp-endpoint", endpoint, "--otlp-protocol", protocol, *stores, "--wait", "60"]) == 0
    said = capsys.readouterr().out
    assert f"Jaeger {local.jaeger.url}: trace" in said
    assert f"Prometheus {local.prometheus.url}: acestep_doctor_time_seconds found" in said
    assert "✗" not in said


def test_a_trace_is_the_tree_that_is_declared(sent: Local) -> None:
    for job in set(PROFILES):
        traces = sent.traces(job)
        assert len(traces) == PROFILES.count(job)
        for spans in traces:
            by_id = {span["spanID"]: span for span in spans}
            counted = {span["operationName"] for span in spans}
            assert counted >= {
                semconv.GENERATE_MUSIC, semconv.LM, semconv.LM_COT, semconv.LM_CODES, semconv.LM_TOKENS,
                semconv.CONDITION, semconv.DIT, semconv.DIT_STEP, semconv.VAE_DECODE, semconv.VAE_TILE,
                semconv.AUDIO_SAVE,
            }  # fmt: skip
            for span in spans:
                parents = semconv.SPANS[span["operationName"]].parents
                above = [by_id[reference["spanID"]]["operationName"] for reference in span["references"]]
                assert set(above) <= set(parents), span["operationName"]
                assert bool(above) == bool(parents)
                assert not span["warnings"]


def test_attributes_have_their_declared_types(sent: Local) -> None:
    # Jaeger writes lists as text.
    types = {bool: "bool", int: "int64", float: "float64", str: "string", tuple: "string"}
    for spans in sent.traces(PROFILES[0]):
        for span in spans:
            for tag in span["tags"]:
                if tag["key"] in semconv.ATTRIBUTES:
                    assert tag["type"] == types[semconv.ATTRIBUTES[tag["key"]].type], tag
                else:
                    assert tag["key"].startswith(("otel.", "span.", "internal.")), tag


def test_series_have_their_declared_names_and_labels(sent: Local) -> None:
    known = {
        f"{name}{part}": {label(attribute) for attribute in metric.attributes}
        for metric in (*semconv.METRICS.values(), semconv.SDK_SPANS_PROCESSED)
        for name in names(metric)
        for part in ("", "_bucket", "_sum", "_count")
    }
    found = sent.prometheus.query(f'{{job="{PROFILES[0]}",__name__!~"target_info|traces_span_metrics_.+|.+:.+"}}')
    assert found
    for sample in found:
        labels = dict(sample["metric"])
        own = known[labels.pop("__name__")]
        assert {"job", "instance", "host_name", "service_name"} <= set(labels)
        assert set(labels) - {"job", "instance", "host_name", "service_name", "le"} <= own


@pytest.mark.parametrize("expression", [*panel_expressions(), *link_expressions(), *rule_expressions()], ids=str)
def test_every_query_of_the_product_is_answered(expression: Expression, sent: Local) -> None:
    jobs = (*PROFILES, BENCHMARK, TIERS, SERVICE)
    sent.prometheus.query_range(filled_in(expression.text, jobs), 600, 15)


def test_every_exemplar_leads_to_a_trace(sent: Local) -> None:
    def exemplars() -> set[str]:
        found = sent.prometheus.exemplars(f'{{job=~"{PROFILES[0]}|{SERVICE}",__name__=~"acestep_.+|gen_ai_.+"}}')
        return {exemplar["labels"]["trace_id"] for one in found for exemplar in one["exemplars"]}

    found = wait_until(exemplars, CLOSE, "exemplars")
    for trace_id in found:
        wait_until(lambda trace_id=trace_id: sent.jaeger.trace(trace_id), CLOSE, f"the trace {trace_id}")


def test_runs_at_the_same_time_are_runs_of_their_own(sent: Local) -> None:
    """Two of one name on one machine: each counts its own request."""
    samples = sent.prometheus.query(f'last_over_time({series(semconv.REQUESTS)}{{job="{PROFILES[0]}"}}[1h])')
    assert [float(sample["value"][1]) for sample in samples] == [1, 1]
    assert len({sample["metric"]["instance"] for sample in samples}) == 2
    assert len({sample["metric"]["host_name"] for sample in samples}) == 1


def test_the_only_request_of_a_run_is_an_increase(sent: Local) -> None:
    """A counter's start comes with it: without it, three songs in three runs were a rate of zero."""
    query = f'sum(increase({series(semconv.REQUESTS)}{{job="{PROFILES[0]}"}}[1h]))'
    (sample,) = sent.prometheus.query(query)
    assert float(sample["value"][1]) >= len(PROFILES)


def test_runs_that_send_differences_add_up(sent: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta")
    for _ in range(2):
        send_one(sent, "delta", "requests=5", "--exports", "2")
    sent.prometheus.wait_for(f'{series(semconv.REQUESTS)}{{job="delta"}} == 10', CLOSE)


def test_no_two_callers_share_a_trace(sent: Local) -> None:
    """Of two loads with seeds of their own."""
    for spans in sent.traces(SERVICE, "POST /songs"):
        assert len([span for span in spans if span["operationName"] == "POST /songs"]) == 1


def test_disconnected_callers_are_not_errors(sent: Local) -> None:
    outcome = label(semconv.OUTCOME)
    samples = sent.prometheus.query(f'last_over_time({series(semconv.REQUESTS)}{{job="{SERVICE}"}}[1h])')
    assert {sample["metric"][outcome] for sample in samples} <= {"ok", "cancelled"}
    for spans in sent.traces(SERVICE):
        for span in spans:
            assert not [tag for tag in span["tags"] if tag["key"] in ("error", "error.type")]


def test_jaeger_shows_rate_and_duration_of_every_span(sent: Local) -> None:
    """Its tab Monitor."""
    for figure in ("calls?", "latencies?quantile=0.95&"):
        url = f"{sent.jaeger.url}/api/metrics/{figure}service={PROFILES[0]}&groupByOperation=true&lookback=3600000"
        url += "&step=60000&ratePer=600000&spanKind=internal"

        def operations(url: str = url) -> set[str]:
            with urlopen(url, timeout=20) as response:
                metrics = json.load(response).get("metrics", [])
            return {one["value"] for metric in metrics for one in metric["labels"] if one["name"] == "operation"}

        wait_until(lambda ask=operations: semconv.DIT in ask(), CLOSE, figure)


IDENTITIES = (
    ("plain", None), ("spaced", "studio"), ("two words", None), ('say "song"', "studio"), ("back\\slash", None),
    ("a/b", None), ("a/c", "north/south"), ("Größe-录音", "スタジオ"), ("pro{job}|.*", "$job"),
)  # fmt: skip
"""Names and namespaces of services, as Prometheus and Jaeger spell them differently."""


@pytest.mark.parametrize(("name", "namespace"), IDENTITIES)
def test_traces_and_series_of_a_service_find_each_other_whatever_it_is_called(
    name: str, namespace: str | None, sent: Local
) -> None:
    """N21: the variable *Traces of* has what Jaeger calls it, and a span's links find its own series."""
    instance = uuid4().hex
    # A rate needs two sends.
    given = ("requests=6", "--exports", "3", "--instance", instance, *(("--namespace", namespace) if namespace else ()))
    trace_id = send_one(sent, name, *given)
    selector = f'{series(semconv.REQUESTS)}{{instance="{instance}"}}'
    (sample,) = sent.prometheus.wait_for(selector, CLOSE)
    assert sample["metric"]["job"] == (f"{namespace}/{name}" if namespace else name)
    (variable,) = (v for v in load(_board("production"))["templating"]["list"] if v["name"] == "service")
    assert name in values_of_variable(variable, sent.prometheus)

    def found() -> list[list[dict[str, Any]]]:
        return [spans for spans in sent.traces(name) if spans[0]["traceID"] == trace_id]

    wait_until(found, CLOSE, "the trace by the name that the variable has")
    (source,) = (source for source in data_sources() if source["type"] == "jaeger")
    (tag,) = source["jsonData"]["tracesToMetrics"]["tags"]
    attributes = [known for process in sent.jaeger.processes(trace_id) for known in process["tags"]]
    chosen = {f'{tag["value"]}="{known["value"]}"' for known in attributes if known["key"] == tag["key"]}
    assert chosen == {f'instance="{instance}"'}
    link = next(link.text for link in link_expressions() if "acestep_requests_total" in link.text)
    sent.prometheus.wait_for(link.replace("$$__tags", *chosen).replace("[5m]", "[1h]"), CLOSE)


def test_a_run_with_a_namespace_from_the_environment_is_found_on_its_board(sent: Local, tmp_path: Path) -> None:
    """N21: as it was reported."""
    run(sent.grpc, tmp_path / "songs", "acestep-otel", SHORT, OTEL_RESOURCE_ATTRIBUTES="service.namespace=studio")
    job = "studio/acestep-otel"
    sent.prometheus.wait_for(f'{series(semconv.PROFILE_DURATION)}{{job="{job}"}}', CLOSE)
    (variable,) = (v for v in load(_board("profile"))["templating"]["list"] if v["name"] == "service")
    assert "acestep-otel" in values_of_variable(variable, sent.prometheus)
    assert job not in values_of_variable(variable, sent.prometheus)
    wait_until(lambda: sent.traces("acestep-otel"), CLOSE, "the trace of the run")


def test_a_prometheus_that_does_not_promote_the_name_has_the_job_without_its_namespace(sent: Local) -> None:
    """As one that scrapes: the label is taken away, and the variable asked again."""
    (variable,) = (v for v in load(_board("production"))["templating"]["list"] if v["name"] == "service")
    bare = f'label_replace(last_over_time({series(semconv.REQUESTS)}[1h]), "service_name", "", "job", ".*")'
    query = variable["query"].replace(f"last_over_time({series(semconv.REQUESTS)}[$__range])", bare)
    assert query != variable["query"]
    found = values_of_variable({**variable, "query": query}, sent.prometheus)
    assert {SERVICE, "spaced", 'say "song"', "two words"} <= set(found)


def _board(name: str) -> Path:
    return next(path for path in BOARDS if path.stem == name)


def test_the_rules_are_healthy(sent: Local) -> None:
    def loaded() -> list[dict[str, Any]]:
        found = sent.prometheus.rules()
        return found if all(rule["health"] != "unknown" for rule in found) else []

    found = wait_until(loaded, CLOSE, "the rules were evaluated")
    assert {rule["health"] for rule in found} == {"ok"}
    assert len(found) == len(rules("recording.yml")) + len(rules("alerts.yml"))


@pytest.fixture(scope="module")
def boards(sent: Local) -> dict[str, Shown]:
    """What the panels of the boards show, by title; ``ACESTEP_STACK_TABLES`` names a file for them."""
    jobs = {"profile": PROFILES, "benchmark": (BENCHMARK,), "tiers": (TIERS,), "production": (SERVICE,)}
    asked_panels, now = [], time.time()
    for path in BOARDS:
        for panel in panels(load(path)):
            if panel["type"] not in ("table", "stat", "bargauge", "barchart") or "expr" not in panel["targets"][0]:
                continue
            queries = {target["refId"]: filled_in(target["expr"], jobs[path.stem]) for target in panel["targets"]}
            # One time for all of a panel, as Grafana asks: rows of several queries are joined by it.
            answers = {letter: sent.prometheus.query(query, at=now) for letter, query in queries.items()}
            asked_panels.append((panel, answers))
    found = shown(asked_panels)
    if file := os.environ.get("ACESTEP_STACK_TABLES"):
        Path(file).write_text("\n\n".join(map(str, found.values())) + "\n", "utf-8")
    return found


def test_the_breakdown_is_the_last_runs_in_the_terminals_order(boards: dict[str, Shown]) -> None:
    """Two runs of one name on one machine: one table."""
    table = boards["Time costs breakdown"]
    labels = [f"├─ {row.label}" if row.is_child else row.label for row in breakdown_rows(Breakdown(wall=1.0))]
    found = table.column("Component")
    assert found == [label for label in labels if label in found]
    assert {"LLM Planning (total)", "DiT Diffusion (total)", "├─ Steps", "VAE Decode", "Wall Time (total)"} <= set(
        found
    )
    assert table.column("% of Total")[-1] == "100.0%"


def test_each_phase_of_the_language_model_is_one_row_with_every_figure(boards: dict[str, Shown]) -> None:
    table = boards["Phases of the language model"]
    assert table.column("Phase") == ["lm.codes", "lm.cot"]
    assert all(cell for row in table.rows for cell in row)


def test_the_benchmark_is_a_table_and_two_matrices(boards: dict[str, Shown]) -> None:
    assert boards["Benchmark"].column("Think") == ["false", "true"]
    assert set(boards["Benchmark"].column("Status")) == {"OK"}
    assert boards["Wall time"].columns[1:] == ["false, steps 1", "true, steps 1"]
    assert set(boards["Split of the time"].columns[1:]) == {"LM", "DiT", "VAE"}
    assert len(boards["Split of the time"].rows) == 2


def test_the_tier_test_names_its_tiers(boards: dict[str, Shown]) -> None:
    assert set(boards["Tier test results"].column("Status")) == {"✅ OK"}
    assert boards["Tier test results"].column("VRAM (GB)") == ["8"]


def test_the_service_is_on_the_board(boards: dict[str, Shown]) -> None:
    figures = dict(zip(boards["Now"].column("name"), boards["Now"].column("value"), strict=True))
    assert set(figures) == {"requests/s", "failing", "cancelled", "in progress"}
    assert figures["failing"] == "0.00%"
    stages = boards["Stages in the time range"]
    assert {"dit", "vae.decode"} <= set(stages.column("Stage"))


def own_services(local: Local) -> dict[str, Running]:
    if not local.services:
        pytest.skip("the servers of a running stack are not stopped")
    return local.services


def test_the_stand_in_says_what_the_collector_says_of_itself(sent: Local) -> None:
    """No series of a failure before the first one."""
    own = {re.match(r"\w+", line).group() for line in own_services(sent)["collector"].figures()}
    assert {name for name in own_figures(accepted=1, lost=0) if "receiver" in name} <= own
    assert not [name for name in own if "failed" in name and "receiver" not in name]


def test_a_trace_waits_for_a_jaeger_that_is_down(sent: Local) -> None:
    jaeger = own_services(sent)["jaeger"]
    jaeger.stop()
    try:
        trace_id = send_one(sent, "waits")
    finally:
        jaeger.start()
    wait_until(lambda: sent.jaeger.trace(trace_id), CLOSE, "the trace that waited")


def test_metrics_wait_for_a_prometheus_that_is_down(sent: Local) -> None:
    prometheus = own_services(sent)["prometheus"]
    prometheus.kill()
    try:
        send_one(sent, "metrics-wait", "requests=5", "--exports", "3")
    finally:
        prometheus.start()
    sent.prometheus.wait_for(f'{series(semconv.REQUESTS)}{{job="metrics-wait"}} == 5', CLOSE)
    assert sent.prometheus.query(f'count_over_time({series(semconv.REQUESTS)}{{job="metrics-wait"}}[1h]) >= 3')


def test_the_first_spans_that_are_lost_fire_an_alert_that_clears(sent: Local) -> None:
    services = own_services(sent)
    collector = services["collector"]
    collector.stop()
    collector.arguments = [
        *collector.arguments,
        *(f"--set=exporters.otlp_grpc/jaeger.retry_on_failure.max_{word}=1s" for word in ("interval", "elapsed_time")),
    ]
    collector.start()
    services["jaeger"].stop()
    send_one(sent, "lost")
    wait_until(lambda: firing(sent, "CollectorDropping"), CLOSE, "the alert fires")
    services["jaeger"].start()
    wait_until(lambda: not firing(sent, "CollectorDropping"), CLOSE, "the alert is over")


def test_a_collector_that_is_down_fires_an_alert_that_clears(sent: Local) -> None:
    collector = own_services(sent)["collector"]
    collector.kill()
    wait_until(lambda: firing(sent, "CollectorDown"), CLOSE, "the alert fires")
    collector.start()
    wait_until(lambda: not firing(sent, "CollectorDown"), CLOSE, "the alert is over")


def firing(local: Local, name: str) -> bool:
    return any(rule["name"] == name and rule["state"] == "firing" for rule in local.prometheus.rules())


def send_one(local: Local, job: str, *more: str) -> str:
    """One trace; returns its id."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.stack.real.sender", "--endpoint", local.grpc, "--job", job, "ordinary=1", *more],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return str(json.loads(done.stdout)["ordinary"][0])
