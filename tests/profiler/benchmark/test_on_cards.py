"""A benchmark on several cards: real children on the CPU, and stand-ins for cards that fail, refuse or differ."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch

from acestep_otel import semconv
from acestep_otel.profiler.benchmark import on_cards
from acestep_otel.profiler.benchmark.matrix import Cell, Figures, longest_first
from acestep_otel.profiler.benchmark.protocol import Event
from acestep_otel.profiler.children.cards import Card
from acestep_otel.profiler.children.processes import Ending
from acestep_otel.profiler.cli import main
from acestep_otel.profiler.report.breakdown import Breakdown
from acestep_otel.profiler.report.spans import FinishedSpan, runs
from acestep_otel.profiler.tier_test.protocol import StageMark
from tests.profiler.report.schema import violations
from tests.receivers import grpc_receiver

SCHEMA = json.loads((files("acestep_otel.profiler.report") / "result.schema.json").read_text("utf-8"))
TINY = ("--tiny", "--mode", "benchmark", "--duration", "10", "--audio-format", "wav")
OUTPUTS = ("--benchmark-output", "result.json", "--trace-output", "trace.jsonl")


def benchmark(*arguments: str) -> int:
    return main([*TINY, *OUTPUTS, *arguments])


def document() -> dict[str, Any]:
    found = json.loads(Path("result.json").read_text("utf-8"))
    assert violations(found, SCHEMA) == []
    return found


def traced() -> list[FinishedSpan]:
    with Path("trace.jsonl").open(encoding="utf-8") as lines:
        return list(FinishedSpan.from_otlp_json(lines))


def named(spans: list[FinishedSpan], name: str) -> list[FinishedSpan]:
    return sorted((span for span in spans if span.name == name), key=lambda span: span.start_ns)


def table(shown: str) -> list[list[str]]:
    lines = shown.splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("Duration   Batch"))
    return [line.split() for line in lines[first + 2 : lines.index("", first)]]


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every child process that is started."""
    started: list[Any] = []
    popen = subprocess.Popen

    def remember(command: list[str], *arguments: Any, **options: Any) -> Any:
        process = popen(command, *arguments, **options)
        if command[:2] == [sys.executable, "-m"]:
            started.append(process)
        return process

    monkeypatch.setattr(subprocess, "Popen", remember)
    return started


def on_event(monkeypatch: pytest.MonkeyPatch, action: Callable[[str, Event | Ending], None]) -> None:
    """Do something after the parent has taken in an event of a card."""
    receive = on_cards.CardCells._receive

    def then(cells: Any, worker: Any, event: Any) -> Any:
        result = receive(cells, worker, event)
        action(worker.card.label, event)
        return result

    monkeypatch.setattr(on_cards.CardCells, "_receive", then)


# --- Real children ------------------------------------------------------------------------------------------------


def test_two_workers_share_a_matrix_in_one_trace_and_one_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def touched(*_arguments: Any) -> Any:
        raise AssertionError("the parent touched CUDA")

    for name in ("is_available", "device_count", "init", "current_device", "get_device_properties"):
        monkeypatch.setattr(torch.cuda, name, touched)
    assert benchmark("--gpus", "cpu:2", "--repeat", "2", "--report", "report.html") == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "CPU 0: " in shown.out
    # In the matrix's order, whoever was first.
    rows = table(shown.out)
    assert [row[:4] for row in rows] == [
        ["10", "1", "False", "8"], ["10", "1", "False", "16"], ["10", "1", "True", "8"], ["10", "1", "True", "16"],
    ]  # fmt: skip
    assert {row[8] for row in rows} == {"OK"}

    found = document()
    cards = [row["card"] for row in found["results"]]
    assert {card["label"] for card in cards} == {"CPU 0", "CPU 1"}
    assert [" ".join(row[9:]) for row in rows] == [card["label"] for card in cards]
    assert {(card["uuid"], card["host"] != "", card["model"] != "") for card in cards} == {(None, True, True)}

    spans = traced()
    assert len({span.trace_id for span in spans}) == 1
    (root,) = named(spans, semconv.BENCHMARK)
    processes = named(spans, semconv.BENCHMARK_PROCESS)
    assert [(process.parent_id, process.attributes[semconv.BENCHMARK_EXIT_CODE]) for process in processes] == [
        (root.span_id, 0)
    ] * 2
    worker_of = {process.span_id: process.attributes[semconv.WORKER] for process in processes}
    assert set(worker_of.values()) == {"CPU 0", "CPU 1"}
    requests = named(spans, semconv.GENERATE_MUSIC)
    assert all(request.attributes[semconv.WORKER] == worker_of[request.parent_id] for request in requests)
    assert {step.attributes[semconv.WORKER] for step in named(spans, semconv.DIT_STEP)} == {"CPU 0", "CPU 1"}
    # A cell stays on one card, with its warm-up and all its repeats, and its figures are those of the trace.
    for index, row in enumerate(found["results"]):
        own = [request for request in requests if request.attributes[semconv.BENCHMARK_CELL] == index]
        assert [request.attributes.get(semconv.BENCHMARK_REPEAT) for request in own] == [None, 0, 1]
        assert {request.attributes[semconv.WORKER] for request in own} == {row["card"]["label"]}
    measured = [run for run in runs(spans) if semconv.BENCHMARK_REPEAT in run.root.attributes]
    by_cell = {
        (run.root.attributes[semconv.BENCHMARK_CELL], run.root.attributes[semconv.BENCHMARK_REPEAT]): Figures.of(
            Breakdown.of(run)
        )
        for run in measured
    }
    for index, row in enumerate(found["results"]):
        assert [run["measurement"]["wall"] for run in row["runs"]] == [
            by_cell[index, repeat].wall_time for repeat in range(2)
        ]
    page = Path("report.html").read_text("utf-8")
    assert '<th scope="col">Card</th>' in page
    assert main(["compare", "result.json", "result.json"]) == 0


def test_a_killed_child_costs_its_cell_alone_and_its_stages_are_in_the_trace(
    monkeypatch: pytest.MonkeyPatch, children: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    killed: list[int] = []

    def kill_in_the_middle(card: str, event: Event | Ending) -> None:
        if isinstance(event, StageMark) and event.name == semconv.VAE_DECODE and not event.ended and not killed:
            killed.append(event.trial)
            os.kill(children[0].pid, signal.SIGKILL)

    on_event(monkeypatch, kill_in_the_middle)
    assert benchmark("--gpus", "cpu:1", "--no-warmup", "--duration", "120", "--inference-steps", "1") == 1
    shown = capsys.readouterr()
    assert shown.err == "error: 1 of 2 cells failed\n"
    assert [row[8] for row in table(shown.out)] == ["Killed", "OK"]
    lost, fine = document()["results"]
    assert (lost["error"]["type"], lost["error"]["stage"], lost["wall_time"]) == ("Killed", "vae.decode", None)
    assert (lost["card"]["label"], fine["status"]) == ("CPU 0", "ok")
    spans = traced()
    first, second = named(spans, semconv.BENCHMARK_PROCESS)
    assert (first.status, first.attributes[semconv.BENCHMARK_EXIT_CODE]) == ("error", -9)
    assert second.attributes[semconv.BENCHMARK_EXIT_CODE] == 0
    (cut,) = [span for span in named(spans, semconv.GENERATE_MUSIC) if span.attributes.get(semconv.TRUNCATED)]
    assert cut.parent_id == first.span_id


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_keeps_the_rows_so_far_and_ends_every_child(
    number: signal.Signals,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    children: list[Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    finished: list[str] = []

    def interrupt(card: str, event: Event | Ending) -> None:
        if type(event).__name__ == "Done":
            finished.append(card)
        elif isinstance(event, StageMark) and finished:
            os.kill(os.getpid(), number)

    on_event(monkeypatch, interrupt)
    try:
        ended: object = benchmark("--gpus", "cpu:2", "--no-warmup")
    except SystemExit as error:
        ended = error.code
    assert ended == code
    assert [child.returncode for child in children] == [-signal.SIGKILL] * 2
    found = document()
    assert 1 <= len(found["results"]) < 4
    assert f"Stopped after {len(found['results'])} of 4 cells." in capsys.readouterr().out
    spans = traced()
    assert len(named(spans, semconv.BENCHMARK)) == 1
    assert len(named(spans, semconv.BENCHMARK_PROCESS)) == 2


def test_metrics_of_parent_and_children_reach_the_collector() -> None:
    with grpc_receiver() as received:
        assert benchmark("--gpus", "cpu:2", "--no-warmup", "--inference-steps", "1", "--otlp-endpoint",
                         received.endpoint) == 0  # fmt: skip
        names = received.metric_names()
        spans = received.span_names()
    # The engine's metrics come from the children, those of the cells from the parent; spans come once.
    assert {"acestep.benchmark.wall", "gen_ai.server.request.duration"} <= set(names)
    assert spans.count(semconv.GENERATE_MUSIC) == 2
    assert spans.count(semconv.BENCHMARK) == 1


def test_what_every_child_would_refuse_is_a_matter_of_set_up(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--mode", "benchmark", "--gpus", "cpu:1", "--checkpoint-dir", "nowhere", *OUTPUTS]
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert len(shown.err.splitlines()) == 1
    assert shown.err.startswith("error: CPU 0: ")
    assert "--download" in shown.err
    assert not Path("result.json").exists()


# --- Stand-ins ----------------------------------------------------------------------------------------------------


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Children that do as they are told, by card: a list of lives, each a list of words."""
    monkeypatch.setattr(on_cards, "_MODULE", "tests.profiler.benchmark.stand_in")
    monkeypatch.setenv("STAND_IN_LIVES", str(tmp_path))

    def play(**lives: list[list[str]]) -> None:
        by_card = {name.replace("_", " ").upper(): words for name, words in lives.items()}
        monkeypatch.setenv("STAND_IN", json.dumps(by_card))

    play()
    return play


def standing_in(*arguments: str) -> int:
    return main(["--mode", "benchmark", "--tiny", *OUTPUTS, *arguments])


def test_the_whole_matrix_by_the_cards_memory(
    stand_in: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert standing_in("--gpus", "cpu:3") == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("48 cells, limits of unlimited (80.0 GiB of GPU memory)\nCPU 0: ")
    # Said once, though every child says it.
    assert shown.out.count("compiled\n") == 1
    found = document()
    assert [row["config"]["duration"] for row in found["results"]] == sorted(
        row["config"]["duration"] for row in found["results"]
    )
    assert len(found["environment"]["accelerators"]) == 3


def test_a_card_that_fails_repeatedly_is_excluded_and_the_others_run_its_cells(
    stand_in: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(cpu_0=[["after CPU 1 2"]], cpu_1=[["die"], ["die"]])
    assert standing_in("--gpus", "cpu:2") == 1
    shown = capsys.readouterr()
    assert "CPU 1 is no longer used after 2 processes: killed by SIGKILL" in shown.err
    found = document()["results"]
    assert len(found) == 48
    assert [row["card"]["label"] for row in found if row["status"] == "error"] == ["CPU 1", "CPU 1"]
    assert {row["card"]["label"] for row in found if row["status"] == "ok"} == {"CPU 0"}


def test_a_child_that_dies_now_and_then_gets_a_successor(stand_in: Callable[..., None]) -> None:
    stand_in(cpu_0=[["done", "die"], ["done", "die"], ["done", "die"]])
    assert standing_in("--gpus", "cpu:1") == 1
    statuses = [row["status"] for row in document()["results"]]
    assert (statuses.count("error"), len(statuses)) == (3, 48)


def test_a_card_that_does_not_start_is_excluded(
    stand_in: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(cpu_0=[["crash"], ["crash"]])
    assert standing_in("--gpus", "cpu:2") == 0
    assert (
        "CPU 0 is no longer used after 2 processes: ended with exit code 3: CUDA error: out of paper"
        in capsys.readouterr().err
    )
    assert {row["card"]["label"] for row in document()["results"]} == {"CPU 1"}


def test_without_a_card_nothing_is_run(stand_in: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    stand_in(cpu_0=[["crash"], ["crash"]])
    assert standing_in("--gpus", "cpu:1") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == (
        "error: no process could be started on a card: CPU 0: ended with exit code 3: CUDA error: out of paper"
    )


def test_after_the_loss_of_the_last_card_the_rows_so_far_are_kept(
    stand_in: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(cpu_0=[["done", "done", "die"], ["die"]])
    assert standing_in("--gpus", "cpu:1") == 1
    shown = capsys.readouterr()
    assert "error: 44 of 48 cells were not run, no card remains: CPU 0: killed by SIGKILL" in shown.err
    assert "Stopped after 4 of 48 cells." in shown.out
    assert len(document()["results"]) == 4


def test_one_refusal_is_everyones(stand_in: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    stand_in(cpu_1=[["refuse"]])
    assert standing_in("--gpus", "cpu:2") == 2
    assert capsys.readouterr().err == "error: CPU 1: no weights for 'it'\n"


def test_cards_that_are_not_alike_are_named_and_their_file_is_not_compared(
    stand_in: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cards = (Card("GPU 0", "H100", "GPU-a", "here"), Card("GPU 1", "A100", "GPU-b", "here"))
    monkeypatch.setattr(on_cards, "chosen_cards", lambda *_: cards)
    assert standing_in("--gpus", "all") == 0
    shown = capsys.readouterr()
    assert "cards are of different models (H100, A100): compare does not accept such a result file" in shown.err
    assert {" ".join(row[9:]) for row in table(shown.out)} == {"GPU 0 (H100)", "GPU 1 (A100)"}
    assert main(["compare", "result.json", "result.json"]) == 2
    assert "has cells of cards of different models (" in capsys.readouterr().err


def test_long_cells_come_first_and_those_that_think_last() -> None:
    cells = [Cell(duration, batch, thinks, 8) for duration in (30, 240) for batch in (1, 4) for thinks in (True, False)]
    ordered = longest_first(cells)
    assert [(cell.duration, cell.batch_size, cell.thinking) for cell in ordered] == [
        (240, 4, False), (240, 1, False), (30, 4, False), (30, 1, False),
        (240, 4, True), (240, 1, True), (30, 4, True), (30, 1, True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "nonsense"], "--gpus 'nonsense': choose GPUs by number (0,1,3), all, or cpu:N"),
        (["--gpus", "cpu:2", "--device", "cuda:0"], "--gpus cpu:2 and --device cuda:0 contradict each other"),
        (["--mode", "profile", "--gpus", "0"], "--gpus belongs to --mode benchmark, tier-test"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], children: list[Any]
) -> None:
    assert standing_in(*arguments) == 2
    shown = capsys.readouterr()
    assert len(shown.err.splitlines()) == 1
    assert message in shown.err
    assert children == []
