"""The speed-up of several cards: the reduction of a trace and of a load, on known figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from acestep_otel import semconv
from acestep_otel.profiler.report.spans import FinishedSpan
from benchmarks import scaling
from benchmarks.scaling import from_trace, gpus, losses, losses_of_service, seen
from benchmarks.service import Reading, seconds_per_song
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


def test_songs_waits_and_latencies_are_counted_between_the_warm_up_and_the_end_of_the_load() -> None:
    report = Report(waits=[(3.0, 60.0), (11.0, 1.0), (12.0, 2.0), (13.0, 3.0), (98.0, 70.0)])
    report.finished = [(5.0, "GPU 0"), (12.0, "GPU 0"), (13.0, "GPU 1"), (14.0, "GPU 0"), (99.0, "GPU 1")]
    report.latencies = [80.0, 5.0, 6.0, 7.0, 90.0]
    figures = seen(report, 10.0, 30.0)
    # Two intervals of a second each.
    assert (figures["songs"], figures["songs_per_hour"]) == (3, 3600)
    assert figures["by_card"] == {"GPU 0": 2, "GPU 1": 1}
    assert figures["queue_wait_seconds"] == {"p50": 2.0, "p95": 3.0}
    assert figures["latency_seconds"] == {"p50": 6.0, "p95": 7.0}


def test_too_short_a_load_is_no_figure() -> None:
    with pytest.raises(SystemExit, match="1 songs ended within 20 s: choose more --seconds"):
        seen(Report(finished=[(12.0, None)], latencies=[1.0]), 10.0, 30.0)


METRICS = """
# TYPE gen_ai_server_request_duration_seconds histogram
gen_ai_server_request_duration_seconds_bucket{acestep_worker="GPU 0",le="+Inf"} 100.0
gen_ai_server_request_duration_seconds_count{acestep_worker="GPU 0"} 100.0
gen_ai_server_request_duration_seconds_sum{acestep_worker="GPU 0"} 9.0
gen_ai_server_request_duration_seconds_count{acestep_worker="GPU 1"} 100.0
gen_ai_server_request_duration_seconds_sum{acestep_worker="GPU 1"} 10.0
# TYPE acestep_stage_duration_seconds histogram
acestep_stage_duration_seconds_sum{acestep_stage="model.load",acestep_worker="GPU 0"} 3.0
acestep_stage_duration_seconds_sum{acestep_stage="dit",acestep_worker="GPU 0"} 8.0
acestep_stage_duration_seconds_sum{acestep_stage="dit",acestep_worker="GPU 1"} 8.0
# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 2.0
process_cpu_seconds_total{acestep_worker="GPU 0"} 20.0
process_cpu_seconds_total{acestep_worker="GPU 1"} 21.0
"""


def test_the_time_of_the_cards_of_a_service_is_split_by_its_metrics() -> None:
    before = Reading(50.0, 0.0, 0.0, {"model.load": 3.0}, 1.0, 1.0)
    split = seconds_per_song(before, Reading.of(METRICS, 60.0), 2)
    # 20 s of two cards for 200 songs, of which they generated 19.
    assert (split["generating"], split["between_songs"]) == pytest.approx((0.095, 0.005))
    assert split["stages"] == {"dit": pytest.approx(0.08)}
    assert split["processor"] == pytest.approx({"service": 0.005, "workers": 0.2})
    shares = losses_of_service({"generating": 0.09}, split)
    assert shares == pytest.approx({"work_of_one_card": 0.9, "songs_that_took_longer": 0.05, "between_songs": 0.05})
    assert sum(shares.values()) == pytest.approx(1)


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
