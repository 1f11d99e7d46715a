"""Writes the dashboards: ``python -m grafana.build``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana.boards.benchmark import benchmark
from grafana.boards.production import production
from grafana.boards.profile import profile
from grafana.boards.tiers import tiers

FOLDER: Final = Path(__file__).resolve().parent / "dashboards"
BOARDS: Final[Mapping[str, Callable[[], dashboard.Dashboard]]] = {
    "profile": profile,
    "benchmark": benchmark,
    "tiers": tiers,
    "production": production,
}

_OF_INTERVALS: Final = ("auto", "auto_count", "auto_min")
"""Fields of a variable of another type."""


def rendered(name: str) -> str:
    """A board as Grafana's JSON."""
    encoded = JSONEncoder().encode(BOARDS[name]().build())
    return json.dumps(published(json.loads(encoded)), sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def published(board: dict[str, Any]) -> dict[str, Any]:
    """A board without what the SDK writes and the schema that Grafana publishes does not have."""
    variables = [
        {name: value for name, value in variable.items() if name not in _OF_INTERVALS}
        for variable in board["templating"]["list"]
    ]
    panels = [
        {**panel, "options": {name: value for name, value in panel["options"].items() if name != "footer"}}
        if "options" in panel
        else panel
        for panel in board["panels"]
    ]
    return {**board, "templating": {**board["templating"], "list": variables}, "panels": panels}


def main() -> None:
    """Write every board."""
    for name in BOARDS:
        (FOLDER / f"{name}.json").write_text(rendered(name), encoding="utf-8")


if __name__ == "__main__":
    main()
