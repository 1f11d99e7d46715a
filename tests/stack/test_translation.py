"""Names in expressions are those that the collector's exporter makes, and those that the process itself serves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from acestep_otel import semconv
from acestep_otel.semconv import MetricDefinition
from grafana.series import label, names, series
from tests.stack.boards import link_expressions, panel_expressions, rule_expressions
from tests.stack.exposition import TRANSLATIONS, translated

# Those that no process of ours sends.
FOREIGN = re.compile(r"otelcol_\w+|target_info|up")


@pytest.mark.parametrize(("instrument", "name"), TRANSLATIONS.items())
def test_the_stand_in_translates_as_the_collector_did(instrument: tuple[str, str, str], name: str) -> None:
    assert translated(*instrument) == name


@pytest.mark.parametrize(("instrument", "name"), TRANSLATIONS.items())
def test_the_boards_translate_as_the_collector_did(instrument: tuple[str, str, str], name: str) -> None:
    metric, kind, unit = instrument
    assert names(MetricDefinition(metric, kind, unit, "", ()))[0] == name


@pytest.mark.parametrize("metric", semconv.METRICS.values(), ids=lambda metric: metric.name)
def test_every_metric_has_one_name_everywhere(metric: MetricDefinition) -> None:
    """A gauge with the unit 1 has two names, with and without _ratio, and expressions query both."""
    assert names(metric)[0] == translated(metric.name, metric.kind, metric.unit)
    assert len(names(metric)) == 1 or metric.name.startswith("hw.")


def test_a_unit_that_exporters_disagree_on_is_refused() -> None:
    with pytest.raises(ValueError, match="no one translation"):
        series(MetricDefinition("acestep.rtf", "gauge", "1", "", ()))


def test_expressions_use_declared_metrics_and_labels_only() -> None:
    known = {name for metric in semconv.METRICS.values() for name in names(metric)}
    parts = {f"{name}_{part}" for name in known for part in ("bucket", "sum", "count")}
    labels = {label(name) for name in semconv.ATTRIBUTES}
    for expression in (*panel_expressions(), *link_expressions(), *rule_expressions()):
        text = re.sub(r'"[^"]*"', "", expression.text)
        for name in re.findall(r"(?<![\w:$])(?:acestep|gen_ai|hw|traces)_\w+(?![\w:])", text):
            assert name in known | parts | labels, f"{expression}: {name}"


def test_documented_queries_name_existing_series() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "dashboards.md").read_text("utf-8")
    known = {name for metric in semconv.METRICS.values() for name in names(metric)}
    named = set(re.findall(r"`((?:acestep|gen_ai|hw)_[a-z_]+)`", text))
    assert named
    assert {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in named} <= known | {
        label(name) for name in semconv.ATTRIBUTES
    }
