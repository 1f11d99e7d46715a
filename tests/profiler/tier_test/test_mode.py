"""Mode tier-test: real children on tiny models, and stand-ins for children that crash, hang or report wrong values."""

from __future__ import annotations

import errno
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

from acestep.cards import Card
from acestep.gpu_config import gpu_config
from acestep_otel import semconv
from acestep_otel.profiler.benchmark.matrix import Failure
from acestep_otel.profiler.cli import main
from acestep_otel.profiler.report.spans import FinishedSpan
from acestep_otel.profiler.tier_test import launcher, mode, outputs
from acestep_otel.profiler.tier_test.protocol import Event, Finished, StageMark, Started, encode
from acestep_otel.profiler.tier_test.trials import Kind, Observation
from acestep_otel.profiler.tier_test.verdict import config_facts
from tests.profiler.report.gpu_run import ENVIRONMENT
from tests.profiler.report.schema import violations
from tests.profiler.tier_test.tier_rows import observation, trial
from tests.receivers import grpc_receiver

SCHEMA = json.loads((files("acestep_otel.profiler.report") / "result.schema.json").read_text("utf-8"))
OUTPUTS = ("--benchmark-output", "result.json", "--trace-output", "trace.jsonl")
TINY = ("--tiny", "--device", "cpu", "--duration", "10", "--inference-steps", "2", "--audio-format", "wav")


def tier_test(*arguments: str) -> int:
    return main(["--mode", "tier-test", *arguments])


def document(path: str = "result.json") -> dict[str, Any]:
    found = json.loads(Path(path).read_text("utf-8"))
    assert violations(found, SCHEMA) == []
    return found


def rows() -> list[tuple[str, str]]:
    return [(f"{row['tier_gb']} {row['test_variant']}", row["status"]) for row in document()["results"]]


def traced() -> list[FinishedSpan]:
    with Path("trace.jsonl").open(encoding="utf-8") as lines:
        return list(FinishedSpan.from_otlp_json(lines))


def named(spans: list[FinishedSpan], name: str) -> list[FinishedSpan]:
    return sorted((span for span in spans if span.name == name), key=lambda span: span.start_ns)


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


def on_event(monkeypatch: pytest.MonkeyPatch, action: Callable[[Event], None]) -> None:
    """Do something after the parent has taken in an event."""
    receive = mode._Child.receive

    def then(listener: Any, event: Event) -> None:
        receive(listener, event)
        action(event)

    monkeypatch.setattr(mode._Child, "receive", then)


@pytest.fixture
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any touch of CUDA in this process is an error; children do not notice."""

    def touched(*_arguments: Any) -> Any:
        raise AssertionError("the parent touched CUDA")

    for name in ("is_available", "device_count", "init", "_lazy_init", "current_device", "get_device_properties"):
        monkeypatch.setattr(torch.cuda, name, touched)
    monkeypatch.setattr(torch._C, "_cuda_init", touched, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getDeviceCount", touched, raising=False)


# --- Real children ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_cuda")
def test_two_cards_in_one_trace_from_a_parent_that_never_touches_cuda(capsys: pytest.CaptureFixture[str]) -> None:
    """R57 ... R60, R62 ... R64, R67, R76 ... R79, R164."""
    before = os.environ.get("MAX_CUDA_VRAM")
    assert tier_test(*TINY, "--tiers", "4", "8", "--tier-with-lm", *OUTPUTS, "--report", "report.html") == 0
    assert os.environ.get("MAX_CUDA_VRAM") == before
    shown = capsys.readouterr()
    assert shown.err == ""
    table = shown.out.split("TIER TEST RESULTS\n")[1].splitlines()
    assert [" ".join(line.split()) for line in table[3:5]] == [
        "4GB tier1 — 10s ✅ OK — cap not enforced: cpu has none",
        "8GB tier4 tiny 10s ✅ OK — pt backend, cap not enforced: cpu has none",
    ]
    assert all(f"{label + ':':<8} " in shown.out for label in ("Result", "Report", "Trace"))

    small, larger = document()["results"]
    assert (small["tier"], small["use_lm"], small["lm_model"]) == ("tier1", False, None)
    assert (larger["tier"], larger["use_lm"], larger["audio"]["thought"]) == ("tier4", True, 1)
    # As asked for, and beside it what was really run.
    assert (larger["offload"], larger["quantization"]) == (True, "int8_weight_only")
    assert larger["run"]["effective_settings"]["placement"]["quantization"] is None
    assert larger["wall_time"] == larger["run"]["measurement"]["wall"] > 0

    spans = traced()
    assert len({span.trace_id for span in spans}) == 1
    (root,) = named(spans, semconv.TIER_TEST)
    processes = named(spans, semconv.TIER_PROCESS)
    assert [process.attributes[semconv.TIER_NAME] for process in processes] == ["tier1", "tier4"]
    assert {process.parent_id for process in processes} == {root.span_id}
    requests = named(spans, semconv.GENERATE_MUSIC)
    assert [request.parent_id for request in requests] == [process.span_id for process in processes]
    assert len(named(spans, semconv.MODEL_LOAD)) == 3
    assert len(named(spans, semconv.DIT_STEP)) == 4


def test_a_killed_child_is_a_row_and_its_stages_are_in_the_trace(
    monkeypatch: pytest.MonkeyPatch, children: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def kill_in_the_middle(event: Event) -> None:
        if isinstance(event, StageMark) and event.name == semconv.VAE_DECODE and not event.ended:
            os.kill(children[0].pid, signal.SIGKILL)

    on_event(monkeypatch, kill_in_the_middle)
    # A long decode, so that the child does not end by itself before the signal is there.
    assert tier_test(*TINY, "--tiers", "4", "--duration", "120", *OUTPUTS) == 1
    shown = capsys.readouterr()
    assert shown.err == "error: 1 of 1 runs by a tier's own settings failed\n"
    assert "4GB default: Killed in vae.decode: killed by SIGKILL: the host ran out of memory" in shown.out
    (killed,) = document()["results"]
    assert (killed["status"], killed["exit_code"], killed["error"]["stage"]) == ("killed", -9, "vae.decode")
    spans = traced()
    (process,) = named(spans, semconv.TIER_PROCESS)
    assert (process.status, process.attributes[semconv.TIER_EXIT_CODE]) == ("error", -9)
    # The load had ended: its span is the child's own. What the kill cut off is made from the journal.
    assert [load.parent_id for load in named(spans, semconv.MODEL_LOAD)] == [process.span_id]
    (cut,) = named(spans, semconv.GENERATE_MUSIC)
    assert cut.attributes[semconv.TRUNCATED] is True
    below = {span.name: span.attributes.get(semconv.TRUNCATED) for span in spans if span.parent_id == cut.span_id}
    assert below == {semconv.CONDITION: None, semconv.DIT: None, semconv.VAE_DECODE: True}


def test_the_trace_of_each_card_is_on_disk_before_the_next_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[list[str]] = []

    def look(event: Event) -> None:
        if isinstance(event, Started):
            held.append([str(span.attributes[semconv.TIER_NAME]) for span in named(traced(), semconv.TIER_PROCESS)])

    Path("trace.jsonl").touch()
    on_event(monkeypatch, look)
    assert tier_test(*TINY, "--tiers", "4", "8", *OUTPUTS) == 0
    assert held == [[], ["tier1"]]


# --- Stand-ins ----------------------------------------------------------------------------------------------------


class Script:
    """What stand-ins do, card by card."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[list[Any]] = []
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(launcher, "_MODULE", "tests.profiler.tier_test.stand_in")

    def on(self, memory: int, *steps: list[Any]) -> None:
        started = Started("cuda:0", config_facts(gpu_config(memory)), ENVIRONMENT)
        self.steps.append(["for", memory, ["say", encode(started)], *steps])
        self._monkeypatch.setenv("STAND_IN", json.dumps(self.steps))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    return Script(monkeypatch)


def passes(memory: int, peak: float, index: int = 0, kind: Kind = "default", **fields: Any) -> list[Any]:
    asked = trial(memory, kind, **fields)
    return ["say", encode(Finished(index, None, False, observation(asked, peak)))]


def runs_out(memory: int, index: int = 0) -> list[Any]:
    seen = Observation("cuda:0", None, initialised=True)
    return ["say", encode(Finished(index, Failure("OutOfMemory", "no room for 3 GiB", "dit"), True, seen))]


def test_the_peak_and_the_guides_table(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    """R66, R78: also that the environment is a child's, since only children look at GPUs."""
    script.on(8, passes(8, 7.21))
    script.on(12, passes(12, 12.5))
    assert tier_test("--tiers", "8", "12", *OUTPUTS) == 1
    shown = capsys.readouterr().out
    assert "✅ OK     7.2GB" in shown
    assert "❌ FAIL   12.5GB" in shown
    assert "12GB default: LimitExceeded: a peak of 12.50 GiB on a card of 12 GiB" in shown
    fine, over = document()["results"]
    assert (fine["peak_vram_gb"], fine["cap_enforced"], fine["memory"]["source"]) == (7.21, True, "nvml_process")
    assert over["error"]["type"] == "LimitExceeded"
    assert document()["environment"]["accelerators"][0]["name"] == ENVIRONMENT.accelerators[0].name


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (["die", signal.SIGKILL], "killed"),
        (["hang"], "timeout"),
        (["exit", 3], "failed"),
        (["complain", "Traceback (most recent call last):"], "failed"),
    ],
)
def test_no_way_to_end_loses_the_other_rows(
    end: list[Any], status: str, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    script.on(6, passes(6, 5.0))
    script.on(8, end)
    script.on(12, passes(12, 9.0))
    assert tier_test("--tiers", "6", "8", "12", "--tier-timeout", "2", *OUTPUTS) == 1
    assert rows() == [("6 default", "ok"), ("8 default", status), ("12 default", "ok")]
    assert ("Traceback" in capsys.readouterr().err) == (end[0] == "complain")


def test_batches_stop_at_the_first_lack_of_memory(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    """R90, R91, R92, R94: and a failing batch is an answer, not a failed command."""
    script.on(
        6,
        *(passes(6, 4.0 + size, index, "batch-noLM", batch_size=size) for index, size in enumerate((1, 2))),
        runs_out(6, index=2),
    )
    assert tier_test("--tiers", "6", "--tier-batch-boundary", *OUTPUTS) == 0
    assert rows() == [
        ("6 batch-noLM-1", "ok"),
        ("6 batch-noLM-2", "ok"),
        ("6 batch-noLM-4", "out_of_memory"),
        ("6 batch-noLM-8", "skipped"),
        ("6 batch-LM-1", "skipped"),
    ]
    results = document()["results"]
    assert results[3]["error"]["message"] == "not tried after batch-noLM-4: OutOfMemory"
    (card,) = document()["tier_test"]["batch_boundary"]
    assert (card["without_lm"]["tested"], card["with_lm"]["tested"]) == (2, None)
    shown = capsys.readouterr().out
    assert "BATCH BOUNDARY ANALYSIS" in shown
    assert "not tried after batch-noLM-4: OutOfMemory" in shown


def test_a_crash_at_exit_does_not_change_the_reported_row(script: Script) -> None:
    script.on(6, passes(6, 4.0, 0, "batch-noLM", batch_size=1), runs_out(6, index=1), ["die", signal.SIGSEGV])
    assert tier_test("--tiers", "6", "--tier-batch-boundary", *OUTPUTS) == 0
    assert [status for _, status in rows()] == ["ok", "out_of_memory", "skipped", "skipped", "skipped"]


def test_a_process_that_dies_between_two_batches_is_the_row_of_the_next_one(script: Script) -> None:
    script.on(6, passes(6, 4.0, 0, "batch-noLM", batch_size=1), ["die", signal.SIGKILL])
    assert tier_test("--tiers", "6", "--tier-batch-boundary", *OUTPUTS) == 0
    assert [status for _, status in rows()] == ["ok", "killed", "skipped", "skipped", "skipped"]


def test_a_first_song_that_does_not_fit_fails_the_command(script: Script) -> None:
    script.on(6, runs_out(6))
    assert tier_test("--tiers", "6", "--tier-batch-boundary", *OUTPUTS) == 1


def test_boundary_variants_that_fail_are_data(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    """R83, R87, R89, R146."""
    # One script for all three children of a card: it passes as whatever is asked for, or runs out.
    script.on(20, passes(20, 17.2))
    assert tier_test("--tiers", "20", "--tier-boundary", "--benchmark-output", "boundary_results.json") == 0
    found = document("boundary_results.json")
    assert [row["test_variant"] for row in found["results"]] == ["default", "no-quant", "no-offload"]
    assert [row["status"] for row in found["results"]] == ["ok", "skipped", "skipped"]
    assert {entry["minimum_tier"] for entry in found["tier_test"]["boundary"]} == {"tier6b"}
    shown = capsys.readouterr().out
    assert "BOUNDARY ANALYSIS" in shown
    assert "tier6b does not quantise" in shown


def test_a_boundary_variant_that_fails_leaves_the_exit_code(script: Script) -> None:
    script.on(12, passes(12, 9.0))
    # The stand-in says that the default's settings ran, which is not what the other two variants asked for.
    assert tier_test("--tiers", "12", "--tier-boundary", *OUTPUTS) == 0
    assert [status for _, status in rows()] == ["ok", "failed", "failed"]
    assert document()["results"][1]["error"]["type"] == "WrongSettings"


def test_a_full_disk_loses_no_row(
    monkeypatch: pytest.MonkeyPatch, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    write, calls = outputs.results.write_result, []

    def full_for_a_while(path: Path, content: Any) -> None:
        calls.append(len(content["results"]))
        if calls[-1] < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr(outputs.results, "write_result", full_for_a_while)
    for memory in (4, 6, 8):
        script.on(memory, passes(memory, 3.0))
    assert tier_test("--tiers", "4", "6", "8", *OUTPUTS) == 0
    # After every row, and once more at the end.
    assert calls == [1, 2, 3, 3]
    assert rows() == [("4 default", "ok"), ("6 default", "ok"), ("8 default", "ok")]


def test_a_disk_that_stays_full_is_said_last_and_the_rest_is_written(
    monkeypatch: pytest.MonkeyPatch, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, content: Any) -> None:
        raise OSError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(outputs.results, "write_result", full)
    script.on(4, passes(4, 3.0))
    assert tier_test("--tiers", "4", *OUTPUTS) == 1
    shown = capsys.readouterr()
    assert shown.err == "error: cannot write result.json: No space left on device\n"
    assert "4GB     tier1" in shown.out
    assert len(traced()) == 2


def test_the_result_file_is_written_after_every_row(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    note = mode._TierTest.note

    def look(test: Any, result: Any) -> None:
        note(test, result)
        counts.append(len(document()["results"]))

    monkeypatch.setattr(mode._TierTest, "note", look)
    for memory in (4, 6):
        script.on(memory, passes(memory, 3.0))
    assert tier_test("--tiers", "4", "6", *OUTPUTS) == 0
    assert counts == [1, 2]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_keeps_the_rows_so_far_and_ends_the_child(
    number: signal.Signals,
    code: int,
    script: Script,
    monkeypatch: pytest.MonkeyPatch,
    children: list[Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    on_event(monkeypatch, lambda event: os.kill(os.getpid(), number) if len(children) == 2 else None)
    script.on(4, passes(4, 3.0))
    script.on(6, ["hang"])
    try:
        ended: object = tier_test("--tiers", "4", "6", *OUTPUTS)
    except SystemExit as error:
        ended = error.code
    assert ended == code
    assert children[1].returncode == -signal.SIGKILL
    assert rows() == [("4 default", "ok")]
    shown = capsys.readouterr().out
    assert "Stopped after 1 of 2 rows." in shown
    assert len(named(traced(), semconv.TIER_PROCESS)) == 2


def test_metrics_of_every_row_are_sent_at_the_end(script: Script) -> None:
    script.on(8, passes(8, 7.0))
    script.on(12, runs_out(12))
    with grpc_receiver() as received:
        assert tier_test("--tiers", "8", "12", "--otlp-endpoint", received.endpoint) == 1
        points = {
            (metric.name, *sorted((pair.key, _plain(pair.value)) for pair in point.attributes)): point
            for request in received.metrics
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name.startswith("acestep.tier.")
            for point in metric.gauge.data_points
        }
        spans = received.span_names()

    def value(name: str, memory: int, tier: str, **more: Any) -> float:
        attributes = {
            semconv.TIER_MEMORY: memory, semconv.TIER_NAME: tier, semconv.TIER_VARIANT: "default",
            semconv.TIER_LM: "none", semconv.AUDIO_DURATION_REQUESTED: 30.0, semconv.BATCH_SIZE: 1, **more,
        }  # fmt: skip
        point = points[(name, *sorted(attributes.items()))]
        return point.as_int or point.as_double

    assert value("acestep.tier.status", 8, "tier4") == 1
    assert value("acestep.tier.status", 12, "tier5") == 0
    assert value("acestep.tier.limit", 8, "tier4") == 8 * 2**30
    assert value("acestep.tier.wall", 8, "tier4") == 3.2
    assert value("acestep.tier.peak", 8, "tier4", **{semconv.VRAM_KIND: "process"}) == 7 * 2**30
    assert spans == [semconv.TIER_TEST, semconv.TIER_PROCESS, semconv.TIER_PROCESS]


def _plain(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--detail", "off"], "a tier test computes its values from the trace"),
        (["--tiers", "0"], "0 is not in the range 1<=x"),
        (["--tier-timeout", "0"], "0.0 is not in the range 0<x"),
        (["--duration", "601"], "--duration 601 s is out of range"),
        (["--batch-size", "2"], "--batch-size is set by the tier in --mode tier-test: --tier-batch-boundary tries"),
        (["--thinking"], "--thinking is set by the tier in --mode tier-test: --tier-with-lm runs"),
        (["--quantization", "int8_weight_only"], "--quantization is set by the tier"),
        (["--offload-to-cpu"], "--offload-to-cpu is set by the tier"),
        (["--repeat", "2"], "--repeat belongs to --mode benchmark"),
        (["--example", "none.json"], "no example 'none.json'"),
        (["--benchmark-output", "."], "cannot write .: it is a directory"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], children: list[Any]
) -> None:
    assert tier_test(*arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert message in shown.err
    assert children == []


@pytest.mark.parametrize("flag", ["--tier-with-lm", "--tier-boundary", "--tier-batch-boundary", "--tier-skip-compile"])
def test_flags_of_a_tier_test_belong_to_it(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tiny", flag]) == 2
    assert capsys.readouterr().err == f"error: {flag} belongs to --mode tier-test\n"


def test_rows_of_a_tier_test_are_not_compared(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.on(4, passes(4, 3.0))
    assert tier_test("--tiers", "4", *OUTPUTS) == 0
    assert main(["compare", "result.json", "result.json"]) == 2
    assert "result.json is a tier test" in capsys.readouterr().err


REFUSED = {"type": "CheckpointNotFound", "message": "no weights for 'it'", "stage": "model.load"}


def test_what_the_first_child_refuses_is_a_matter_of_set_up(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.on(4, ["say", json.dumps({"event": "Refused", "failure": REFUSED})])
    assert tier_test("--tiers", "4", "8", *OUTPUTS) == 2
    assert capsys.readouterr().err == "error: no weights for 'it'\n"
    assert not Path("result.json").exists()


def test_a_card_that_refuses_later_is_a_row(script: Script) -> None:
    script.on(4, passes(4, 3.0))
    script.on(8, ["say", json.dumps({"event": "Refused", "failure": REFUSED})])
    assert tier_test("--tiers", "4", "8", *OUTPUTS) == 1
    assert rows() == [("4 default", "ok"), ("8 default", "failed")]
    assert document()["results"][1]["error"] == REFUSED


# --- Several cards ------------------------------------------------------------------------------------------------


def test_two_workers_share_the_rows_in_one_trace(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [argument for argument in TINY if argument not in ("--device", "cpu")]
    assert tier_test(*arguments, "--tiers", "4", "8", "--gpus", "cpu:2", *OUTPUTS, "--report", "report.html") == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.startswith("2 rows, 2 processes, on 2 cards\nCPU 0: ")
    assert rows() == [("4 default", "ok"), ("8 default", "ok")]
    cards = [row["card"] for row in document()["results"]]
    assert {card["label"] for card in cards} == {"CPU 0", "CPU 1"}
    assert all(card["label"] in shown.out.split("TIER TEST RESULTS")[1] for card in cards)
    spans = traced()
    assert len({span.trace_id for span in spans}) == 1
    first, second = named(spans, semconv.TIER_PROCESS)
    assert {first.attributes[semconv.WORKER], second.attributes[semconv.WORKER]} == {"CPU 0", "CPU 1"}
    # Beside each other.
    assert second.start_ns < first.end_ns
    for request in named(spans, semconv.GENERATE_MUSIC):
        (process,) = [span for span in (first, second) if span.span_id == request.parent_id]
        assert request.attributes[semconv.WORKER] == process.attributes[semconv.WORKER]


def test_a_card_whose_child_dies_goes_on_with_the_next_row(script: Script) -> None:
    for memory in (4, 12, 16):
        script.on(memory, passes(memory, 3.0))
    script.on(6, ["die", signal.SIGKILL])
    script.on(8, ["hang"])
    arguments = ("--tiers", "4", "6", "8", "12", "16", "--gpus", "cpu:2", "--tier-timeout", "4")
    assert tier_test(*arguments, *OUTPUTS) == 1
    assert rows() == [
        ("4 default", "ok"), ("6 default", "killed"), ("8 default", "timeout"),
        ("12 default", "ok"), ("16 default", "ok"),
    ]  # fmt: skip
    assert {row["card"]["label"] for row in document()["results"]} == {"CPU 0", "CPU 1"}


def test_ctrl_c_ends_the_children_of_all_cards(
    script: Script, monkeypatch: pytest.MonkeyPatch, children: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[Event] = []

    def interrupt(event: Event) -> None:
        started.append(event)
        # The first one passes and says two things.
        if len(children) == 3 and len(started) >= 4:
            os.kill(os.getpid(), signal.SIGINT)

    on_event(monkeypatch, interrupt)
    script.on(4, passes(4, 3.0))
    for memory in (6, 8):
        script.on(memory, ["hang"])
    assert tier_test("--tiers", "4", "6", "8", "--gpus", "cpu:2", *OUTPUTS) == 130
    assert rows() == [("4 default", "ok")]
    assert [child.returncode for child in children[1:]] == [-signal.SIGKILL] * 2
    assert len(named(traced(), semconv.TIER_PROCESS)) == 3


def test_cards_that_are_not_alike_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], children: list[Any]
) -> None:
    cards = (Card("GPU 0", "H100", "GPU-a", "here"), Card("GPU 1", "A100", "GPU-b", "here"))
    monkeypatch.setattr(mode, "chosen_cards", lambda *_: cards)
    assert tier_test("--gpus", "all") == 2
    assert "the cards are of different models (H100, A100)" in capsys.readouterr().err
    assert children == []
