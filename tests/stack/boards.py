"""Reads the committed dashboards and rules."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.stack.prometheus import Prometheus

ROOT = Path(__file__).resolve().parents[2]
BOARDS = sorted((ROOT / "grafana" / "dashboards").glob("*.json"))
RULES = ROOT / "collectors" / "prometheus"
PROVISIONING = ROOT / "grafana" / "provisioning"

STEP = 144
"""Seconds between the points of a panel 600 pixels wide that shows a day."""
SEND = 60
"""Seconds between two sends of a process, the least step of a query with a rate."""
RATE = f"{max(STEP + SEND, 4 * SEND)}s"
"""What Grafana makes of $__rate_interval then."""


@dataclass(frozen=True)
class Expression:
    """A PromQL expression, where it is, and how it is asked."""

    place: str
    text: str
    exemplars: bool = False
    instant: bool = True

    @property
    def board(self) -> str:
        """Where it is, less the panel: a board's file, ``link``, ``recording`` or ``alert``."""
        return self.place.partition(":")[0]

    def __str__(self) -> str:
        return self.place


def load(board: Path) -> dict[str, Any]:
    return dict(json.loads(board.read_text("utf-8")))


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every panel that is no row."""
    for panel in board["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels", [])
        else:
            yield panel


def panel_expressions() -> Iterator[Expression]:
    for path in BOARDS:
        for panel in panels(load(path)):
            for target in panel["targets"]:
                if "expr" in target:
                    place = f"{path.stem}: {panel['title']} {target['refId']}"
                    instant = target.get("instant", False)
                    yield Expression(place, target["expr"], target.get("exemplar", False), instant)


def values_of_variable(variable: dict[str, Any], prometheus: Prometheus) -> list[str]:
    """What can be chosen, as Grafana finds it: ``label_values``, or ``query_result`` with a regular expression."""
    kind, query = re.fullmatch(r"(label_values|query_result)\((.+)\)", variable["query"]).groups()
    if kind == "label_values":
        selector, name = re.fullmatch(r"(.+), (\w+)", query).groups()
        return prometheus.label_values(name, filled_in(selector))
    texts = []
    for sample in prometheus.query(filled_in(query)):
        labels = ",".join(f'{name}="{value}"' for name, value in sample["metric"].items())
        time, figure = sample["value"]
        texts.append(f"{{{labels}}} {figure} {time * 1000:.0f}")
    found = (re.search(variable["regex"].strip("/"), text) for text in texts)
    return [match[1] for match in found if match]


def data_sources() -> list[dict[str, Any]]:
    text = (PROVISIONING / "datasources" / "acestep.yaml").read_text("utf-8")
    return list(yaml.safe_load(text)["datasources"])


def link_expressions() -> Iterator[Expression]:
    for source in data_sources():
        for query in source["jsonData"].get("tracesToMetrics", {}).get("queries", []):
            yield Expression(f"link: {query['name']}", query["query"], instant=False)


def rules(file: str) -> list[dict[str, Any]]:
    text = (RULES / file).read_text("utf-8")
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def rule_expressions() -> Iterator[Expression]:
    for rule in rules("recording.yml"):
        yield Expression(f"recording: {rule['record']}", rule["expr"])
    for rule in rules("alerts.yml"):
        yield Expression(f"alert: {rule['alert']}", without_threshold(rule["expr"]))


def without_threshold(expression: str) -> str:
    """An alert's expression, so that it says 0 or 1 instead of nothing or something."""
    found, count = re.subn(r"([<>]=?|==)\s*([\d.]+)\s*$", r"\1 bool \2", expression)
    assert count == 1, expression
    return found


def filled_in(expression: str, jobs: Sequence[str] = (".*",), range_: str = "1h") -> str:
    """With values for Grafana's variables: some runs, and of the rest everything that can be chosen."""
    chosen = "|".join(jobs)
    for name, value in (
        ("$__rate_interval", RATE),
        ("$__range", range_),
        ("$$__tags", f'job=~"{chosen}"'),
        ("$job", chosen),
        ("$baseline_host", ".*"),
        ("$baseline", chosen),
    ):
        expression = expression.replace(name, value)
    return re.sub(r"\$[A-Za-z_]\w*", ".*", expression)
