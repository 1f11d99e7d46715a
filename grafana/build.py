"""Writes the dashboards: ``python -m grafana.build``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

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


def rendered(name: str) -> str:
    """A board as Grafana's JSON."""
    encoded = JSONEncoder(sort_keys=True, indent=2).encode(BOARDS[name]().build())
    return json.dumps(json.loads(encoded), sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write every board."""
    for name in BOARDS:
        (FOLDER / f"{name}.json").write_text(rendered(name), encoding="utf-8")


if __name__ == "__main__":
    main()
