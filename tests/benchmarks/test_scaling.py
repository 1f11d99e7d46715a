"""The speed-up of several cards: the reduction of a trace and of a load, on known figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from acestep_otel import semconv
from acestep_otel.profiler.report.spans import FinishedSpan
from benchmarks import scaling
from benchmarks.scaling import from_trace, gpus, losses, seen
from examples.serving.load import Report, quantile

SECOND = 10**9


def span(name: str, start: float, end: float, worker: str | None = None) -> FinishedSpan:
    attributes = {} if worker is None else {semconv.WORKER: worker}
    times = (round(start * SECOND), round(end * SECOND))
    return FinishedSpan(
        name, "1" * 16, None, "1" * 32, *times, attributes=attributes, status="ok", error=None, events=()
    )


def request(worker: str, start: float, end: float) -> FinishedSpan:
    return span(semconv.GENERATE_MUSIC, start, end, worker)


ONE = from_trace([span(semconv.BENCHMARK, 0, 13), request("GPU 0", 2, 8), request("GPU 0", 8, 12)])
TWO = from_trace([span(semconv.BENCHMARK, 0, 13), request("GPU 0", 2, 8), request("GPU 1", 3, 7.5)])


def test_a_trace_contains_the_working_times_of_each_card() -> None:
    assert ONE["seconds"] == 10
    assert TWO["seconds"] == 6
    assert TWO["by_card"]["GPU 1"] == {"requests": 1, "working": 4.5, "loading": 3, "waiting_at_the_end": 0.5}


def test_the_time_of_all_cards_is_split_without_a_rest() -> None:
    shares = losses(ONE, TWO)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares == pytest.approx(
        {
            "work_of_one_card": 10 / 12,
            "requests_that_took_longer": 0.5 / 12,
            "waiting_at_the_end": 0.5 / 12,
            "between_requests": 1 / 12,
        }
    )


def test_songs_are_counted_between_the_warm_up_and_the_end_of_the_load() -> None:
    report = Report(waits=[1.0, 2.0, 3.0, 4.0])
    report.finished = [(5.0, "GPU 0"), (12.0, "GPU 0"), (13.0, "GPU 1"), (14.0, "GPU 0"), (99.0, "GPU 1")]
    figures = seen(report, 10.0, 20.0)
    # Two intervals of a second each.
    assert (figures["songs"], figures["songs_per_hour"]) == (3, 3600)
    assert figures["by_card"] == {"GPU 0": 2, "GPU 1": 1}
    assert figures["queue_wait_seconds"] == {"p50": 3.0, "p95": 4.0}


def test_too_short_a_load_is_no_figure() -> None:
    with pytest.raises(SystemExit, match="1 songs ended within 20 s: choose more --seconds"):
        seen(Report(finished=[(12.0, None)]), 10.0, 20.0)


def test_a_part_that_is_cut_off_keeps_the_numbers_of_cards_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_matrix(cards: str, *_options: Any) -> dict[str, Any]:
        if cards == "cpu:4":
            raise KeyboardInterrupt
        return {"cards": cards, "command_seconds": 20.0, **(ONE if cards == "cpu:1" else TWO), "rows": []}

    output = tmp_path / "scaling.json"
    monkeypatch.setattr(scaling, "run_matrix", run_matrix)
    monkeypatch.setattr("sys.argv", ["scaling", "--tiny", "--counts", "1", "2", "4", "--output", str(output)])
    with pytest.raises(KeyboardInterrupt):
        scaling.main()
    found = json.loads(output.read_text("utf-8"))
    assert [run["count"] for run in found["matrix"]] == [1, 2]
    assert found["matrix"][1]["speed_up"] == pytest.approx(10 / 6)
    assert "service" not in found
    assert found["environment"]["command"].endswith(f"--output {output}")


def test_cards_are_the_first_of_the_host() -> None:
    assert (gpus(4, tiny=False), gpus(2, tiny=True)) == ("0,1,2,3", "cpu:2")


def test_a_quantile_is_one_of_the_values() -> None:
    assert [quantile([3.0, 1.0, 2.0], share) for share in (0.0, 0.5, 0.95)] == [1.0, 2.0, 3.0]
    assert quantile([], 0.5) == 0
