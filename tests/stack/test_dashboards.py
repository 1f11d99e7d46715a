"""The committed dashboards: those that the source makes, complete, and with nothing that leads nowhere."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana.build import BOARDS as SOURCES
from grafana.build import rendered
from tests.stack.boards import BOARDS, PROVISIONING, ROOT, data_sources, load, panels

DOCUMENT = ROOT / "docs" / "dashboards.md"
# Grafana's own variables.
BUILT_IN = {"__rate_interval", "__range"}

every_board = pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)


def test_the_source_makes_what_is_committed() -> None:
    assert {path.stem for path in BOARDS} == set(SOURCES)
    for path in BOARDS:
        assert path.read_text("utf-8") == rendered(path.stem), f"python -m grafana.build was not run ({path.name})"


@every_board
def test_grafanas_model_reads_it_and_writes_it_back(path: Path) -> None:
    """What the model does not know would be missing."""
    board = load(path)
    assert json.loads(JSONEncoder().encode(Dashboard.from_json(board))) == board


@every_board
def test_every_panel_has_title_description_and_unit(path: Path) -> None:
    titles = [panel["title"] for panel in panels(load(path))]
    assert len(titles) == len(set(titles))
    for panel in panels(load(path)):
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["targets"]


@every_board
def test_panels_do_not_overlap_and_fit_the_grid(path: Path) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in load(path)["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert grid["x"] + grid["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


@every_board
def test_data_sources_are_provisioned(path: Path) -> None:
    provisioned = {(source["type"], source["uid"]) for source in data_sources()}
    variables = load(path)["templating"]["list"]
    chosen = {v["name"]: (v["query"], v["current"]["value"]) for v in variables if v["type"] == "datasource"}
    assert set(chosen.values()) <= provisioned
    for reference in _found(load(path), "datasource"):
        name = reference["uid"].removeprefix("${").removesuffix("}")
        assert chosen[name][0] == reference["type"]


@every_board
def test_every_variable_that_is_used_exists_and_is_used(path: Path) -> None:
    board = load(path)
    declared = {variable["name"] for variable in board["templating"]["list"]}
    text = json.dumps([*board["panels"], *(variable.get("query") for variable in board["templating"]["list"])])
    text += json.dumps([variable.get("datasource") for variable in board["templating"]["list"]])
    used = set(re.findall(r"\$\{?(\w+)\}?", text)) - BUILT_IN
    assert used == declared


def _found(node: Any, key: str) -> list[dict[str, Any]]:
    if isinstance(node, dict):
        own = [node[key]] if isinstance(node.get(key), dict) else []
        return own + [found for value in node.values() for found in _found(value, key)]
    if isinstance(node, list):
        return [found for value in node for found in _found(value, key)]
    return []


def test_dots_lead_to_the_traces_and_spans_back_to_the_metrics() -> None:
    metrics, traces = ({s["type"]: s for s in data_sources()}[kind] for kind in ("prometheus", "jaeger"))
    assert metrics["jsonData"]["exemplarTraceIdDestinations"] == [{"name": "trace_id", "datasourceUid": traces["uid"]}]
    assert traces["jsonData"]["tracesToMetrics"]["datasourceUid"] == metrics["uid"]


def test_the_folder_that_grafana_reads_is_the_one_that_is_mounted() -> None:
    provider = yaml.safe_load((PROVISIONING / "dashboards" / "acestep.yaml").read_text("utf-8"))["providers"][0]
    grafana = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]["grafana"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in grafana["volumes"]


def test_the_document_maps_tables_to_panels_that_exist() -> None:
    """Each table of the benchmark guide has its panel, and each panel is described."""
    rows = re.findall(r"^\| (.+?) \| \*(.+?)\* \| (.+?) \|", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    existing = {
        (load(path)["title"].removeprefix("ACE-Step / "), p["title"]) for path in BOARDS for p in panels(load(path))
    }
    mapped = {(board, panel) for _, board, titles in rows for panel in titles.split(", ")}
    assert mapped <= existing
    assert {table for table, *_ in rows} >= {
        "Time costs breakdown", "Key metrics", "Benchmark matrix", "Tier test results", "Boundary analysis",
        "Batch boundary summary",
    }  # fmt: skip
