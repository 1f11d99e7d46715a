"""A benchmark on a Ray cluster: one trace and one file for all nodes, and no cell lost with an actor or a node."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from acestep_otel import semconv
from acestep_otel.profiler.benchmark import on_ray
from acestep_otel.profiler.benchmark.on_ray import RayCells
from acestep_otel.profiler.cli import main
from acestep_otel.profiler.report.spans import FinishedSpan
from tests.profiler.outputs import SCHEMA
from tests.profiler.report.schema import violations
from tests.receivers import grpc_receiver

pytest.importorskip("ray", reason="Ray is not installed: make test-ray")
# Ray and its processes give warnings of their own.
pytestmark = pytest.mark.filterwarnings("default")

TINY = ("--tiny", "--mode", "benchmark", "--duration", "10", "--audio-format", "wav", "--no-warmup")
OUTPUTS = ("--benchmark-output", "result.json", "--trace-output", "trace.jsonl")


def benchmark(cluster: Any, *arguments: str) -> int:
    return main([*TINY, *OUTPUTS, "--ray", cluster.address, "--gpus", "cpu:2", *arguments])


def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("result.json").read_text("utf-8"))
    assert violations(found, SCHEMA) == []
    return found


def traced() -> list[FinishedSpan]:
    with Path("trace.jsonl").open(encoding="utf-8") as lines:
        return list(FinishedSpan.from_otlp_json(lines))


def named(spans: list[FinishedSpan], name: str) -> list[FinishedSpan]:
    return [span for span in spans if span.name == name]


@pytest.fixture
def at_the_first_cell(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], None]], None]:
    """Do something once, when the first actor has been given a cell."""

    def set_up(action: Callable[[Any], None]) -> None:
        hand_out, done = RayCells._hand_out, []

        def then(cells: Any, actor: Any, bar: Any) -> None:
            hand_out(cells, actor, bar)
            if not done:
                done.append(True)
                action(actor)

        monkeypatch.setattr(RayCells, "_hand_out", then)

    return set_up


def process_of(actor: Any) -> int:
    """Known to the actor alone; asked for while it is idle or starting, so kept from its preparation."""
    return int(PROCESSES[actor.index])


PROCESSES: dict[int, int] = {}


@pytest.fixture(autouse=True)
def _processes(monkeypatch: pytest.MonkeyPatch) -> None:
    from acestep_otel.profiler.benchmark.on_ray import _Actor

    PROCESSES.clear()
    prepare = RayCells._prepare

    def remember(cells: Any) -> None:
        prepare(cells)
        for actor in cells._actors:
            assert isinstance(actor, _Actor)
            PROCESSES[actor.index] = cells._ray.get(actor.handle.prepare.remote())[2]

    monkeypatch.setattr(RayCells, "_prepare", remember)


def test_actors_on_two_nodes_share_a_matrix_in_one_trace(cluster: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with grpc_receiver() as received:
        assert benchmark(cluster, "--repeat", "2", "--otlp-endpoint", received.endpoint) == 0
        metrics, exported = set(received.metric_names()), received.span_names()
    shown = capsys.readouterr()
    assert "CPU 0: " in shown.out
    found = document()
    rows = found["results"]
    assert [(row["config"]["thinking"], row["config"]["inference_steps"]) for row in rows] == [
        (False, 8), (False, 16), (True, 8), (True, 16),
    ]  # fmt: skip
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["card"]["label"] for row in rows} == {"CPU 0", "CPU 1"}
    assert found["benchmark"]["lost"] == []
    spans = traced()
    assert len({span.trace_id for span in spans}) == 1
    (root,) = named(spans, semconv.BENCHMARK)
    workers = {span.span_id: span.attributes[semconv.WORKER] for span in named(spans, semconv.BENCHMARK_PROCESS)}
    assert set(workers.values()) == {"CPU 0", "CPU 1"}
    assert {span.parent_id for span in named(spans, semconv.BENCHMARK_PROCESS)} == {root.span_id}
    requests = named(spans, semconv.GENERATE_MUSIC)
    assert len(requests) == 8
    assert all(request.attributes[semconv.WORKER] == workers[str(request.parent_id)] for request in requests)
    assert all(request.attributes[semconv.HOST_NAME] for request in requests)
    # Engine metrics of the actors were delivered before they ended, and every span was sent once.
    assert {"gen_ai.server.request.duration", "acestep.benchmark.wall"} <= metrics
    assert exported.count(semconv.GENERATE_MUSIC) == 8


def test_the_cell_of_an_actor_that_is_killed_is_run_elsewhere(
    cluster: Any, at_the_first_cell: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    at_the_first_cell(lambda actor: os.kill(process_of(actor), signal.SIGKILL))
    assert benchmark(cluster, "--duration", "60") == 0
    found = document()
    assert {row["status"] for row in found["results"]} == {"ok"}
    (lost,) = found["benchmark"]["lost"]
    assert lost["error"]["type"] == "ActorDiedError"
    assert lost["cell"]["thinking"] is False
    shown = capsys.readouterr()
    assert f"{lost['card']['label']} on {lost['card']['host']} was lost while it ran 60 s x 1" in shown.out
    errors = [span for span in named(traced(), semconv.BENCHMARK_PROCESS) if span.status == "error"]
    assert [span.attributes[semconv.ERROR_TYPE] for span in errors] == ["ActorDiedError"]


def test_a_lost_node_costs_no_cell(
    cluster: Any, at_the_first_cell: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    removed: list[Any] = []

    def remove(_actor: Any) -> None:
        removed.append(cluster.workers[0])
        cluster.remove_node(cluster.workers[0], allow_graceful=False)

    at_the_first_cell(remove)
    assert benchmark(cluster, "--duration", "60") == 0
    found = document()
    assert {row["status"] for row in found["results"]} == {"ok"}
    assert len(found["results"]) == 4
    (lost,) = found["benchmark"]["lost"]
    assert lost["error"]["type"] in ("ActorDiedError", "ActorUnavailableError")
    # From then on the other node's actor did all.
    assert len({row["card"]["label"] for row in found["results"][2:]}) == 1


def test_a_cell_that_loses_two_actors_is_a_row(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hand_out, victims = RayCells._hand_out, []

    def kill_who_has_it(cells: Any, actor: Any, bar: Any) -> None:
        hand_out(cells, actor, bar)
        if actor.order is not None and actor.order.index == 1:
            victims.append(actor.index)
            cells._ray.kill(actor.handle)

    monkeypatch.setattr(RayCells, "_hand_out", kill_who_has_it)
    assert benchmark(cluster) == 1
    rows = document()["results"]
    assert [row["status"] for row in rows] == ["ok", "error", "ok", "ok"]
    assert rows[1]["error"]["type"] == "ActorDiedError"
    assert (len(victims), len(document()["benchmark"]["lost"])) == (2, 2)


def test_without_room_for_an_actor_the_rows_so_far_are_kept(
    cluster: Any,
    at_the_first_cell: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def remove_both(_actor: Any) -> None:
        monkeypatch.setattr(on_ray, "START_SECONDS", 3.0)
        for node in cluster.workers:
            cluster.remove_node(node, allow_graceful=False)

    at_the_first_cell(remove_both)
    assert benchmark(cluster, "--duration", "60") == 1
    assert "cells were not run, no node has resources for an actor" in capsys.readouterr().err


def test_ctrl_c_keeps_the_rows_so_far(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    receive, rows = RayCells._receive, []

    def interrupt(cells: Any, call: Any, bar: Any) -> Any:
        result = receive(cells, call, bar)
        if result is not None:
            rows.append(result)
        elif rows:
            os.kill(os.getpid(), signal.SIGINT)
        if len(rows) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return result

    monkeypatch.setattr(RayCells, "_receive", interrupt)
    assert benchmark(cluster) == 130
    assert len(document()["results"]) >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "0,1"], "--gpus 0,1 names cards of one host: with --ray choose all, or cpu:N"),
        (["--gpus", "all"], "no node has a GPU; --gpus cpu:N runs N actors on CPUs"),
        (["--gpus", "cpu:9"], "7 of 9 actors were not started within 30 s: the cluster has too few free resources"),
    ],
)
def test_what_the_cluster_cannot_do_is_one_line(
    cluster: Any,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(on_ray, "START_SECONDS", 30.0)
    assert benchmark(cluster, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not Path("result.json").exists()


def test_a_cluster_that_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*TINY, "--ray", "auto"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: --ray auto: no cluster responds (")
