"""Every PromQL expression of the product, evaluated by a real Prometheus with real runs."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from acestep_otel import semconv
from acestep_otel.profiler.report.breakdown import Breakdown, breakdown_rows
from grafana.series import series
from tests.stack import scenarios
from tests.stack.boards import (
    BOARDS,
    STEP,
    Expression,
    filled_in,
    link_expressions,
    load,
    panel_expressions,
    panels,
    rule_expressions,
    rules,
    values_of_variable,
)
from tests.stack.conftest import Stack
from tests.stack.prometheus import INTERVAL, wait_until

HOUR, DAY = 3600, 24 * 3600
# The runs that each board of ended runs is opened for.
ENDED = {"profile": scenarios.PROFILES, "benchmark": scenarios.BENCHMARKS, "tiers": (scenarios.TIERS,)}


def values(samples: list[dict[str, Any]]) -> list[float]:
    """All that are numbers."""
    found = [float(value) for one in samples for _, value in one.get("values", [one.get("value")])]
    return [value for value in found if not math.isnan(value)]


@pytest.mark.parametrize("expression", [e for e in panel_expressions() if e.board in ENDED], ids=str)
def test_a_run_that_ended_an_hour_ago_is_on_its_board(expression: Expression, stack: Stack) -> None:
    """Asked as Grafana does when the board is opened with the range of a day; the service's own data do not count."""
    text = filled_in(expression.text, ENDED[expression.board], "24h")
    if expression.instant:
        assert values(stack.prometheus.query(text, later=HOUR))
    else:
        assert values(stack.prometheus.query_range(text, DAY, STEP, later=HOUR))


def happens(expression: Expression) -> bool:
    """The series of a failure is not there before the first one, and here only spans are lost at the exporter."""
    return not re.search(r"enqueue_failed|send_failed_metric_points", expression.place)


@pytest.mark.parametrize(
    "expression",
    [*(e for e in panel_expressions() if e.board not in ENDED), *filter(happens, rule_expressions())],
    ids=str,
)
def test_a_service_is_on_its_board_and_in_the_rules(expression: Expression, stack: Stack) -> None:
    assert values(stack.prometheus.query(filled_in(expression.text, (scenarios.SERVICE,))))


@pytest.mark.parametrize("expression", list(link_expressions()), ids=str)
def test_a_spans_links_lead_to_figures(expression: Expression, stack: Stack) -> None:
    """Of a service, or of a run that has ended, as their names say. A short run is in few scrapes."""
    job = scenarios.PROFILES[0] if "run" in expression.place else scenarios.SERVICE
    assert values(stack.prometheus.query_range(filled_in(expression.text, (job,)), HOUR, INTERVAL))


def test_what_has_ended_is_not_scraped_any_more(stack: Stack) -> None:
    """Else the boards were not shown to work without it."""
    jobs = {sample["metric"]["job"] for sample in stack.prometheus.query(series(semconv.STAGE_DURATION, "count"))}
    assert jobs == {scenarios.SERVICE}


@pytest.mark.parametrize("expression", [e for e in panel_expressions() if e.exemplars], ids=str)
def test_dots_lead_to_traces(expression: Expression, stack: Stack) -> None:
    found = [
        exemplar["labels"]["trace_id"]
        for one in stack.prometheus.exemplars(filled_in(expression.text))
        for exemplar in one["exemplars"]
    ]
    sent = {span.trace_id.hex() for job in (scenarios.SERVICE, *scenarios.ENDED) for span in stack.spans_of(job)}
    assert found
    assert set(found) <= sent


def test_every_template_variable_has_values(stack: Stack) -> None:
    for path in BOARDS:
        for variable in load(path)["templating"]["list"]:
            if variable["type"] == "query":
                assert values_of_variable(variable, stack.prometheus), variable["name"]


def test_the_breakdown_on_the_board_is_the_one_in_the_terminal(stack: Stack) -> None:
    (panel,) = [p for p in panels(load(BOARDS[[b.stem for b in BOARDS].index("profile")])) if "breakdown" in p["title"]]
    seconds = {
        sample["metric"]["component"].removeprefix("├─ "): float(sample["value"][1])
        for sample in stack.prometheus.query(filled_in(panel["targets"][0]["expr"].replace("$job", "after")))
    }
    rows = breakdown_rows(Breakdown(wall=1.0))
    assert set(seconds) == {row.label for row in rows if row.component != "steps"}
    top = ("LLM Planning (total)", "DiT Diffusion (total)", "VAE Decode", "Audio Save", "Other / Overhead")
    assert sum(seconds[label] for label in top) == pytest.approx(seconds["Wall Time (total)"])
    roots = [span for span in stack.spans_of("after") if span.name == semconv.GENERATE_MUSIC]
    measured = max(roots, key=lambda span: span.start_time_unix_nano)
    wall = (measured.end_time_unix_nano - measured.start_time_unix_nano) / 1e9
    assert seconds["Wall Time (total)"] == pytest.approx(wall)


def test_rules_are_evaluated_without_an_error_and_memory_alerts_fire(stack: Stack) -> None:
    loaded = stack.prometheus.rules()
    assert {rule["name"] for rule in loaded} == {
        *(rule["record"] for rule in rules("recording.yml")),
        *(rule["alert"] for rule in rules("alerts.yml")),
    }
    assert {rule["health"] for rule in loaded} == {"ok"}

    def states() -> dict[str, str]:
        return {rule["name"]: rule["state"] for rule in stack.prometheus.rules() if rule["type"] == "alerting"}

    wait_until(lambda: states()["AceStepOutOfMemory"] == "firing", 10, "AceStepOutOfMemory fires")
    assert states()["AceStepErrors"] == "pending"
    assert states()["AceStepVramHeadroomLow"] == "pending"
    assert states()["CollectorDown"] == "inactive"


def test_labels_are_the_processes_own(stack: Stack) -> None:
    """honor_labels: else job and instance would be the collector's."""
    (sample,) = stack.prometheus.query(f"max by (job, host_name) ({series(semconv.REQUESTS)})")
    assert sample["metric"] == {"job": scenarios.SERVICE, "host_name": scenarios.HOST}
