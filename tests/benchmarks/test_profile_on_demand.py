"""Profiles on demand: the reduction of known songs, and a short run of the program with the tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from acestep_otel import semconv
from benchmarks import profile_on_demand
from benchmarks.profile_on_demand import Outcomes, Period, Served, rows_of, served, verdict
from benchmarks.trace_store import StoredSpan

SECOND = 10**9


def made(began: float, *, processing: float = 1.0, wait: float = 0.5, profile: str | None = None) -> Served:
    return Served(f"{began:032.0f}", began, processing, wait, profile)


def span(name: str, start: float, end: float, **attributes: object) -> StoredSpan:
    return StoredSpan(name, b"1", b"2", attributes, round(start * SECOND), round(end * SECOND))


def test_a_song_has_its_wait_and_its_processing_apart() -> None:
    queue, song = span(semconv.QUEUE_WAIT, 10, 13), span(semconv.GENERATE_MUSIC, 13, 14.5)
    assert served("a", [queue, song]) == Served("a", began=13, processing=1.5, wait=3, profile=None)
    assert served("a", [queue]) is None


def test_songs_beside_a_profile_are_those_that_it_overlaps() -> None:
    period = Period(2, profiles=True, others=[made(0), made(2.5), made(3.9), made(9)], busy=[(3.0, 4.0)])
    assert [song.began for song in period.beside] == [2.5, 3.9]


def test_periods_before_and_after_the_first_profile_are_separate_rows() -> None:
    periods = [
        Period(1, profiles=False, others=[made(0)], latencies=[1.5]),
        Period(
            2,
            profiles=True,
            others=[made(12, processing=3.0), made(20)],
            asked=[made(10, processing=2.0, profile="/p/1"), made(22)],
            busy=[(10.0, 13.0)],
        ),
        Period(3, profiles=False, others=[made(30, processing=1.2)]),
    ]
    rows = rows_of(periods)
    assert {name: row["songs"] for name, row in rows.items()} == {
        "without, before": 1,
        "without, later": 1,
        "with": 2,
        "  beside a profile": 1,
        "  otherwise": 1,
        "profiled": 1,
        "refused": 1,
    }
    assert rows["  beside a profile"]["processing_seconds"] == {"p50": 3.0, "p99": 3.0}
    assert rows["without, before"]["client_seconds"] == {"p50": 1.5, "p99": 1.5}


def test_outcomes_are_read_from_the_metrics_and_only_profiles_count_as_finished() -> None:
    page = 'acestep_profiles_total{{acestep_outcome="{}",otel_scope_name="acestep_otel"}} {}.0\n'
    outcomes = Outcomes()
    outcomes.note(page.format("refused", 2) + page.format("stored", 1))
    outcomes.note(page.format("refused", 3) + page.format("stored", 2))
    assert outcomes.counts == {"refused": 3, "stored": 2}
    assert len(outcomes.finished) == 2


def test_a_run_without_a_linked_profile_fails() -> None:
    linked = {"profile": "/p/1", "linked": True, "bytes": 9}
    result = {"profiles": [linked], "ended": {"done": 3}, "outcomes": {"stored": 1, "refused": 4}}
    assert verdict(result) == []
    assert verdict({**result, "profiles": []}) == ["no request was profiled"]
    assert verdict({**result, "profiles": [{**linked, "bytes": 0}]}) == ["/p/1 is not linked"]
    assert verdict({**result, "outcomes": {"OSError": 1}}) == ["1 profiles: OSError"]


def test_a_profiled_song_of_a_running_service_is_linked_and_the_others_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, folder = tmp_path / "result.json", tmp_path / "profiles"
    monkeypatch.setattr(profile_on_demand, "WARM_UP_SECONDS", 0.1)
    options = ["--device", "cpu", "--clients", "1", "--duration", "10", "--every", "1", "--seconds", "2"]
    files = ["--profiles", str(folder), "--output", str(output)]
    monkeypatch.setattr("sys.argv", ["profile_on_demand", *options, "--periods", "1", *files])
    profile_on_demand.main()
    found = json.loads(output.read_text("utf-8"))
    (profile,) = found["profiles"]
    (path,) = folder.iterdir()
    assert (profile["profile"], profile["bytes"]) == (str(path), path.stat().st_size)
    assert path.name.startswith(profile["trace_id"])
    assert profile["linked"]
    assert {"without, before", "with", "profiled"} <= found["rows"].keys()
    assert set(found["ended"]) == {"done"}
    assert "linked from the root span" in capsys.readouterr().out
