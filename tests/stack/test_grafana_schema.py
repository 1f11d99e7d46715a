"""The dashboards fit what Grafana publishes: one version of it, everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from tests.stack.boards import BOARDS, ROOT, load
from tests.stack.grafana_library import FOLDER, against_schema


def test_the_dashboards_fit_the_schema_that_grafana_publishes() -> None:
    assert against_schema(*BOARDS) == []


def test_what_does_not_fit_is_found(tmp_path: Path) -> None:
    """The check above can fail."""
    board = load(BOARDS[0])
    panel = next(panel for panel in board["panels"] if panel["type"] == "table")
    panel["options"]["cellHeigth"] = "sm"
    board["refresh"] = 5
    (broken := tmp_path / "broken.json").write_text(json.dumps(board), "utf-8")
    found = " ".join(against_schema(broken))
    assert "cellHeigth" in found
    assert "/refresh" in found


def test_the_library_has_the_version_of_the_server() -> None:
    """``docker-compose.yml`` is where versions are chosen."""
    image = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]["grafana"]["image"]
    packages = json.loads((FOLDER / "package.json").read_text("utf-8"))["dependencies"]
    assert {packages["@grafana/data"], packages["@grafana/schema"]} == {image.rpartition(":")[2]}
