"""Recording and alert rules, by Prometheus's own tool."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import yaml

from tests.programs import program
from tests.stack.boards import ROOT, RULES, rules


def promtool(*arguments: str, folder: Path = RULES) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program("promtool"), *arguments], cwd=folder, capture_output=True, text=True)


def test_the_rules_are_valid() -> None:
    done = promtool("check", "rules", "recording.yml", "alerts.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_do_what_their_tests_say() -> None:
    done = promtool("test", "rules", "rules_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_both_ways() -> None:
    tests = yaml.safe_load((RULES / "rules_test.yml").read_text("utf-8"))["tests"]
    expected = [(case["alertname"], bool(case["exp_alerts"])) for test in tests for case in test["alert_rule_test"]]
    for rule in rules("alerts.yml"):
        assert (rule["alert"], True) in expected
        assert (rule["alert"], False) in expected


def test_a_rule_that_is_broken_is_noticed(tmp_path: Path) -> None:
    """The tests above can fail."""
    for file in ("recording.yml", "alerts.yml", "rules_test.yml"):
        text = (RULES / file).read_text("utf-8")
        (tmp_path / file).write_text(re.sub(r"headroom:ratio < 0\.05", "headroom:ratio < 0.01", text), "utf-8")
    assert promtool("test", "rules", "rules_test.yml", folder=tmp_path).returncode != 0


def test_every_alert_says_what_and_what_to_do() -> None:
    for rule in rules("alerts.yml"):
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "description"}


def test_every_alert_is_documented() -> None:
    text = (ROOT / "docs" / "dashboards.md").read_text("utf-8")
    assert set(re.findall(r"^\| `(AceStep\w+|Collector\w+)` \|", text, re.MULTILINE)) == {
        rule["alert"] for rule in rules("alerts.yml")
    }
