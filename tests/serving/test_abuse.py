"""The benchmark's verdict, and a few seconds of it: the service under abuse, with marker words in everything."""

import re
import subprocess
import sys

import pytest

from benchmarks.abuse import verdict
from tests.services import ROOT

GOOD = {
    "planted_words_in": [],
    "memory_growth": 0.01,
    "series": {"early": 500, "late": 510},
    "before": {"latency_seconds": {"p95": 2.0}},
    "during": {"latency_seconds": {"p95": 2.5}, "ended": {"done": 3, "cancelled": 1}},
    "exit_seconds": 1,
}


@pytest.mark.parametrize(
    ("changes", "failures"),
    [
        ({}, []),
        ({"planted_words_in": ["log"]}, ["marker words in: log"]),
        ({"memory_growth": 0.2}, ["memory grew by 20.0%"]),
        ({"series": {"early": 500, "late": 5_000}}, ["series grew from 500 to 5000"]),
        ({"before": {"latency_seconds": {"p95": 1.0}}}, ["the 95th percentile of normal callers grew by 2.50"]),
        (
            {"before": {"latency_seconds": {"p95": None}}},
            ["no song of a normal caller was finished, so there is no percentile to compare"],
        ),
        ({"exit_seconds": 30}, ["the exit took 30.0 s"]),
    ],
)
def test_what_went_wrong_is_named(changes, failures):
    assert verdict({**GOOD, **changes}) == failures


def test_a_song_of_a_normal_caller_that_fails_is_a_failure():
    during = {"latency_seconds": {"p95": 2.5}, "ended": {"done": 3, "failed": 1}}
    assert len(verdict({**GOOD, "during": during})) == 1


@pytest.mark.parametrize("options", [[], ["--agent"]], ids=["alone", "agent"])
def test_a_short_abuse_leaves_no_word_and_no_song_unfinished(options):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.abuse", "--minutes", "0.15", "--clients", "1", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert "marker words in: nothing" in done.stdout, done.stderr
    # Seconds on a busy machine say nothing of memory, series, percentiles and the end of the interpreter.
    failures = [line for line in done.stderr.splitlines() if re.search("marker words|songs of normal", line)]
    assert failures == []
    answers = re.search(r"^abuse: (.*)$", done.stdout, re.MULTILINE)[1]
    assert all(kind in answers for kind in ("bad_body: 4", "bad_trace_headers: 4", "made_up_request: 4"))
    assert ": 500" not in answers
