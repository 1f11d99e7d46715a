"""The committed dashboards: generated from the source, complete, and without dead references."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from acestep.gpu_config import gpu_config
from acestep_otel import semconv
from acestep_otel.profiler.tier_test.table import render_tiers
from acestep_otel.profiler.tier_test.trials import GIB
from grafana.build import BOARDS as SOURCES
from grafana.build import published, rendered
from tests.stack.boards import BOARDS, PROVISIONING, ROOT, SEND, data_sources, load, panels, rules

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
    """Unknown fields would be missing."""
    board = load(path)
    assert published(json.loads(JSONEncoder().encode(Dashboard.from_json(board)))) == board


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
    used = set(re.findall(r"\$\{?([A-Za-z_]\w*)\}?", text)) - BUILT_IN
    assert used == declared


def _found(node: Any, key: str) -> list[dict[str, Any]]:
    if isinstance(node, dict):
        own = [node[key]] if isinstance(node.get(key), dict) else []
        return own + [found for value in node.values() for found in _found(value, key)]
    if isinstance(node, list):
        return [found for value in node for found in _found(value, key)]
    return []


@every_board
def test_colours_are_chosen(path: Path) -> None:
    """Grafana's own are green up to 80 and red from there, whatever the unit."""
    for panel in panels(load(path)):
        if panel["type"] in ("stat", "bargauge", "gauge"):
            steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
            assert steps[0]["value"] is None
            assert all(step["value"] < 80 for step in steps[1:]), panel["title"]


def test_limits_of_boards_and_alerts_are_the_same() -> None:
    """The share of requests that fail, and the share of the VRAM that is left."""
    (failing,) = _thresholds("production", "Now", "failing")
    assert alert_limit("AceStepErrors") == failing
    full = _thresholds("tiers", "Tier test results", "Headroom")[-1]
    assert alert_limit("AceStepVramHeadroomLow") == full


def alert_limit(name: str) -> float:
    (expression,) = [rule["expr"] for rule in rules("alerts.yml") if rule["alert"] == name]
    return float(re.search(r"[<>] ([\d.]+)$", expression.strip())[1])


def _thresholds(board: str, title: str, column: str) -> list[float]:
    """Where the colour of a column or figure changes."""
    (panel,) = [
        panel for path in BOARDS if path.stem == board for panel in panels(load(path)) if panel["title"] == title
    ]
    (found,) = [
        setting["value"]["steps"]
        for override in panel["fieldConfig"]["overrides"]
        if override["matcher"]["options"] == column
        for setting in override["properties"]
        if setting["id"] == "thresholds"
    ]
    return [step["value"] for step in found[1:]]


def test_the_tier_table_has_the_columns_of_the_terminal() -> None:
    """All but the notes, which are text; in the same order."""
    header = render_tiers(()).splitlines()[2].split("  ")
    shown = [name.strip() for name in header if name.strip() not in ("", "Notes")]
    (panel,) = [p for path in BOARDS for p in panels(load(path)) if p["title"] == "Tier test results"]
    order = next(step["options"] for step in panel["transformations"] if step["id"] == "organize")
    titles = [
        order["renameByName"][name].partition(" (")[0]
        for name in sorted(order["indexByName"], key=order["indexByName"].get)
    ]
    assert [title for title in titles if title in shown] == shown


def test_the_boundary_table_names_the_tier_of_each_size() -> None:
    (panel,) = [p for path in BOARDS for p in panels(load(path)) if p["title"] == "Boundary analysis"]
    (override,) = [o for o in panel["fieldConfig"]["overrides"] if o["matcher"]["options"] == "Min Tier"]
    ranges = [one["options"] for one in override["properties"][0]["value"]]
    for memory in (4, 6, 8, 12, 16, 20, 24, 80):
        (tier,) = [r["result"]["text"] for r in ranges if r["from"] <= memory * GIB <= r["to"]]
        assert tier == gpu_config(memory).tier


def test_the_use_of_the_device_counts_no_stage_inside_another() -> None:
    (panel,) = [p for path in BOARDS for p in panels(load(path)) if p["title"] == "Device utilisation"]
    left_out = re.findall(r'acestep_stage!=?~?"([^"]+)"', panel["targets"][0]["expr"])
    # Steps and tiles have histograms of their own.
    nested = {
        semconv.stage_of(span.name)
        for span in semconv.SPANS.values()
        if span.parents and all(semconv.SPANS[parent].parents for parent in span.parents)
    } - {semconv.stage_of(name) for name in (semconv.DIT_STEP, semconv.VAE_TILE)}
    assert nested
    assert {stage for stage in nested if not any(re.fullmatch(pattern, stage) for pattern in left_out)} == set()


@every_board
def test_the_window_of_a_rate_spans_several_exports(path: Path) -> None:
    """Grafana's $__rate_interval is four times a query's least step, or more; a process sends once a minute."""
    for panel in panels(load(path)):
        for target in panel["targets"]:
            if "$__rate_interval" in target.get("expr", ""):
                assert target["interval"] == f"{SEND // 60}m", panel["title"]


@every_board
def test_tables_and_matrices_are_sorted(path: Path) -> None:
    """Prometheus gives an instant's samples in no order."""
    for panel in panels(load(path)):
        steps = [step["id"] for step in panel.get("transformations", [])]
        if panel["type"] in ("table", "barchart"):
            assert "sortBy" in steps, panel["title"]
        if "groupingToMatrix" in steps:
            assert steps.index("sortBy") < steps.index("groupingToMatrix")


def test_dots_lead_to_the_traces_and_spans_back_to_the_metrics() -> None:
    metrics, traces = ({s["type"]: s for s in data_sources()}[kind] for kind in ("prometheus", "jaeger"))
    assert metrics["jsonData"]["exemplarTraceIdDestinations"] == [{"name": "trace_id", "datasourceUid": traces["uid"]}]
    back = traces["jsonData"]["tracesToMetrics"]
    assert back["datasourceUid"] == metrics["uid"]
    # A name is a label without its namespace in no store, and Jaeger has no attribute service.name.
    assert back["tags"] == [{"key": "service.instance.id", "value": "instance"}]
    assert all("by (job, " in query["query"].replace("by (le, ", "by (") for query in back["queries"])


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
    assert mapped == existing
    assert {table for table, *_ in rows} >= {
        "Time costs breakdown", "Key metrics", "Benchmark matrix", "Tier test results", "Boundary analysis",
        "Batch boundary summary",
    }  # fmt: skip
