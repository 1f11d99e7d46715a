"""Names and PromQL expressions of what ``acestep_otel.semconv`` declares.

Expressions are built from the declarations, so a metric that is renamed renames its panels. Two kinds of selection:

* ``last``: the newest value in the dashboard's time range, of the last run of each name, machine, mode and model. A run
  that has ended still shows, because its series end with its last values.
* ``rate`` and ``quantile`` over ``$__rate_interval``: what a service does now.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from acestep_otel import semconv
from acestep_otel.semconv import MetricDefinition

_UNIT_SUFFIXES: Final = {
    "s": "_seconds",
    "By": "_bytes",
    "J": "_joules",
    "By/s": "_bytes_per_second",
    "{operation}/s": "_per_second",
}

HOST: Final = "host_name"
"""Label of the machine; ``instance`` is one process on it."""
RUN: Final = f'job=~"$job",{HOST}=~"$host"'
"""The runs or services, and the machines, that a board's variables select."""
STAGE: Final = "acestep_stage"
MODEL: Final = "gen_ai_request_model"
RANGE: Final = "$__range"
"""The dashboard's time range."""
RATE: Final = "$__rate_interval"
"""The shortest window with enough points in it."""


def label(attribute: str) -> str:
    """An attribute's name as a label."""
    return attribute.replace(".", "_")


def series(metric: MetricDefinition, part: str = "") -> str:
    """A metric's name in Prometheus, as a collector's exporter translates it.

    Args:
        metric: its declaration.
        part: ``bucket``, ``sum`` or ``count`` of a histogram.

    Raises:
        ValueError: a unit whose translation differs between exporters.
    """
    if metric.unit not in _UNIT_SUFFIXES and not metric.unit.startswith("{"):
        raise ValueError(f"{metric.name}: no one translation of the unit {metric.unit!r}")
    name = metric.name.replace(".", "_")
    suffix = _UNIT_SUFFIXES.get(metric.unit, "")
    if not name.endswith(suffix):
        name += suffix
    if metric.kind == "counter" and not name.endswith("_total"):
        name += "_total"
    return f"{name}_{part}" if part else name


def names(metric: MetricDefinition) -> tuple[str, ...]:
    """A metric's names in Prometheus: one, but for the unit ``1`` (only conventions that are not ours have it).

    A collector's exporter adds ``_ratio`` to those, and the exporter within the process does not.
    """
    if metric.unit != "1":
        return (series(metric),)
    name = metric.name.replace(".", "_")
    return f"{name}_ratio", name


def selected_by_any_name(metric: MetricDefinition) -> str:
    """A selector of a metric, under each of its names."""
    return " or ".join(f"{name}{{{RUN}}}" for name in names(metric))


def selected(metric: MetricDefinition, *matchers: str, part: str = "", run: str = RUN) -> str:
    """A selector.

    Args:
        metric: its declaration.
        matchers: for example ``acestep_stage="dit"``.
        part: of a histogram.
        run: matchers of the runs.
    """
    return f"{series(metric, part)}{{{','.join(filter(None, (run, *matchers)))}}}"


def last(metric: MetricDefinition, *matchers: str, modes: str, part: str = "", run: str = RUN) -> str:
    """The newest value in the time range, of the last runs: each run is an instance, and older ones are excluded.

    Args:
        metric: its declaration.
        matchers: for example ``acestep_stage="dit"``.
        modes: of the command line, as a regular expression: what counts as a run.
        part: of a histogram.
        run: matchers of the runs.
    """
    identity = f"job, {HOST}, {label(semconv.MODE)}, {MODEL}"
    time = _newest_value(semconv.RUN_TIME, f'{label(semconv.MODE)}=~"{modes}"', run=run)
    runs = f"{time} == on ({identity}) group_left () max by ({identity}) ({time})"
    return f"({_newest_value(metric, *matchers, part=part, run=run)} and on (job, instance) ({runs}))"


def _newest_value(metric: MetricDefinition, *matchers: str, part: str = "", run: str = RUN) -> str:
    return f"last_over_time({selected(metric, *matchers, part=part, run=run)}[{RANGE}])"


def rate(metric: MetricDefinition, *matchers: str, part: str = "") -> str:
    """Change per second."""
    return f"rate({selected(metric, *matchers, part=part)}[{RATE}])"


def counted(metric: MetricDefinition, *matchers: str) -> str:
    """What a counter of rare events counts now; its first value is an increase that ``increase`` does not see."""
    found = selected(metric, *matchers)
    return f"({found} unless {found} offset {RATE}) or increase({found}[{RATE}])"


def lost_by_collectors(what: str, by: str) -> str:
    """What the collectors did not deliver or refused within a window; a failure's series begins with its first one.

    Args:
        what: ``spans`` or ``metric_points``.
        by: labels to add up by.
    """
    known = f"on (job, instance) (up offset {RATE} or otelcol_process_uptime < 300)"
    failures = ("exporter_send_failed", "exporter_enqueue_failed", "receiver_refused")
    parts = []
    for failure in failures:
        counted_ = f"otelcol_{failure}_{what}"
        increase = f"{counted_} unless {counted_} offset {RATE} and {known} or increase({counted_}[{RATE}])"
        # Equal labels of two figures would hide the second.
        parts.append(f'label_replace({increase}, "failure", "{failure}", "", "")')
    return f"sum by ({by}) ({' or '.join(parts)})"


def mean_of_last(metric: MetricDefinition, *matchers: str, modes: str, by: Iterable[str]) -> str:
    """Mean of everything that a histogram has counted in the last runs."""
    grouping = ", ".join(by)
    total, count = (
        f"sum by ({grouping}) ({last(metric, *matchers, modes=modes, part=part)})" for part in ("sum", "count")
    )
    return f"{total} / ({count} > 0)"


def quantile_of_last(
    quantile: float, metric: MetricDefinition, *matchers: str, modes: str, by: Iterable[str] = ()
) -> str:
    """Quantile of everything that a histogram has counted in the last runs."""
    return _quantile(quantile, last(metric, *matchers, modes=modes, part="bucket"), by)


def quantile(quantile: float, metric: MetricDefinition, *matchers: str, by: Iterable[str] = ()) -> str:
    """Quantile of what a histogram counts now."""
    return _quantile(quantile, rate(metric, *matchers, part="bucket"), by)


def _quantile(quantile: float, buckets: str, by: Iterable[str]) -> str:
    return f"histogram_quantile({quantile:g}, sum by ({', '.join(('le', *by))}) ({buckets}))"


def named(expression: str, name: str, separator: str, *labels: str) -> str:
    """Join labels to a new one."""
    joined = ", ".join(f'"{item}"' for item in labels)
    return f'label_join({expression}, "{name}", "{separator}", {joined})'


def values_of(metric: MetricDefinition, name: str, *matchers: str) -> str:
    """Query of a template variable: the values of a metric's label."""
    return (
        f"label_values({series(metric)}{{{','.join(matchers)}}}, {name})"
        if matchers
        else (f"label_values({series(metric)}, {name})")
    )


_SERVICE: Final = "service_name"
SERVICES: Final = f'/{_SERVICE}="(.*)"\\}} /'
"""Regular expression of the values in what ``services_of`` finds."""


def services_of(metric: MetricDefinition) -> str:
    """Query of a template variable: the services of a metric, by the names that their traces have.

    A trace store has ``service.name``; the label ``job`` has the namespace before it. Where Prometheus does not promote
    the attribute to a label, there is the job alone, and what comes before its first slash is taken for the namespace.
    """
    found = f'label_join(last_over_time({series(metric)}[{RANGE}]), "name_and_job", ";", "{_SERVICE}", "job")'
    named = f'label_replace({found}, "{_SERVICE}", "$1", "name_and_job", ";(?:[^/]*/)?(.*)")'
    return f"query_result(count by ({_SERVICE}) ({named}))"


CELL: Final = tuple(
    label(name)
    for name in (
        semconv.AUDIO_DURATION_REQUESTED,
        semconv.BATCH_SIZE,
        semconv.THINKING,
        semconv.DIT_STEPS_REQUESTED,
    )
)
"""Labels of a benchmark's cell: duration, batch size, thinking, steps."""
