"""Grafana of a running stack: it loads every board, and answers every panel's queries.

Only its image exists, so this runs where ``docker compose up`` did (``ACESTEP_STACK_RUNNING``), after ``test_local``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.request import Request, urlopen

import pytest

from tests.stack.boards import BOARDS, filled_in, load, panels

GRAFANA = "http://localhost:3000"


def get(path: str, body: object | None = None) -> Any:
    given = None if body is None else json.dumps(body).encode()
    with urlopen(Request(f"{GRAFANA}/api/{path}", given, {"Content-Type": "application/json"}), timeout=60) as response:
        return json.load(response)


def queries() -> Iterator[Any]:
    for path in BOARDS:
        for panel in panels(load(path)):
            yield pytest.param(panel, id=f"{path.stem}: {panel['title']}")


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_grafana_loads_the_board_as_it_is(path: Any) -> None:
    board = load(path)
    loaded = get(f"dashboards/uid/{board['uid']}")["dashboard"]
    assert loaded["title"] == board["title"]
    assert [panel["title"] for panel in panels(loaded)] == [panel["title"] for panel in panels(board)]


@pytest.mark.parametrize("panel", list(queries()))
def test_grafana_answers_every_query_of_a_panel(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        source = "prometheus" if "expr" in target else "jaeger"
        asked = {**target, "datasource": {"type": source, "uid": source}, "intervalMs": 15000, "maxDataPoints": 500}
        if "expr" in asked:
            asked["expr"] = filled_in(asked["expr"])
        else:
            asked |= {"service": "before", "minDuration": ""}
        answer = get("ds/query", {"from": "now-1h", "to": "now", "queries": [asked]})["results"][target["refId"]]
        assert answer.get("status", 200) == 200, answer
        assert "error" not in answer, answer


def test_the_run_is_on_the_profile_board() -> None:
    """Data, and not only no error."""
    (path,) = [path for path in BOARDS if path.stem == "profile"]
    (panel,) = [panel for panel in panels(load(path)) if panel["title"] == "Time costs breakdown"]
    asked = [
        {**target, "datasource": {"type": "prometheus", "uid": "prometheus"}, "expr": filled_in(target["expr"])}
        for target in panel["targets"]
    ]
    answer = get("ds/query", {"from": "now-1h", "to": "now", "queries": asked})["results"]
    for target in asked:
        (frame, *_) = answer[target["refId"]]["frames"]
        assert len(frame["data"]["values"][0])


def test_alerts_are_listed() -> None:
    groups = get("prometheus/prometheus/api/v1/rules")["data"]["groups"]
    assert {rule["name"] for group in groups for rule in group["rules"]} >= {"AceStepErrors", "CollectorDropping"}
