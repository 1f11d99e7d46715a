"""What is declared is emitted: no name of the conventions is without a place that makes it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from acestep_otel import semconv

ROOT = Path(semconv.__file__).parent
CODE = "\n".join(path.read_text("utf-8") for path in ROOT.rglob("*.py") if path.name != "semconv.py")
USED = set(re.findall(r"\bsemconv\.([A-Z][A-Z0-9_]+)", CODE))
DECLARED = {
    constant: value if isinstance(value, str) else value.name
    for constant, value in vars(semconv).items()
    if isinstance(value, (str, semconv.MetricDefinition)) and constant.isupper() and constant != "SCHEMA_URL"
}


@pytest.mark.parametrize(
    "registry", [semconv.SPANS, semconv.ATTRIBUTES, semconv.METRICS], ids=["spans", "attributes", "metrics"]
)
def test_every_declared_name_is_used(registry: dict[str, object]) -> None:
    constants = {name: constant for constant, name in DECLARED.items() if name in registry}
    assert {name for name, constant in constants.items() if constant not in USED} == set()
