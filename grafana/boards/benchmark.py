"""Board *Benchmark*: the matrix as a table and as a heat map, its split, and one run against another."""

from __future__ import annotations

from typing import Final

from grafana_foundation_sdk.builders import barchart, bargauge, dashboard, table

from acestep_otel import semconv
from acestep_otel.semconv import MetricDefinition
from grafana.panels import Axes, Query, Size, Text, bars, matrix, stacked_bars
from grafana.series import CELL, HOST, MODEL, RUN, label, last, named, values_of
from grafana.tables import Column, Labels, data_table
from grafana.variables import assembled, board, choice

_DURATION, _BATCH, _THINK, _STEPS = CELL
_HEADERS: Final = {_DURATION: "Duration", _BATCH: "Batch", _THINK: "Think", _STEPS: "Steps"}
_NUMERIC: Final = (_DURATION, _BATCH, _STEPS)
_SHAPE: Final = Axes("shape", "settings", CELL, _NUMERIC)
_TIMES: Final = {
    "Wall(s)": semconv.BENCHMARK_WALL,
    "LM(s)": semconv.BENCHMARK_LM,
    "DiT(s)": semconv.BENCHMARK_DIT,
    "VAE(s)": semconv.BENCHMARK_VAE,
}
_MODE: Final = "benchmark"
_BASELINE: Final = 'job=~"$baseline",host_name=~"$baseline_host"'
_STATUS: Final = (("1", "OK", "green"), ("0", "FAILED", "red"))
_RATIO: Final = ((None, "green"), (1.02, "yellow"), (1.1, "red"))


def benchmark() -> dashboard.Dashboard:
    """The board."""
    status = semconv.BENCHMARK_STATUS
    empty = (
        board(
            "acestep-benchmark",
            "Benchmark",
            "The matrix of a benchmark, and one run or machine against another: name runs with OTEL_SERVICE_NAME.",
            from_="now-7d",
        )
        .with_variable(choice("job", "Run", values_of(status, "job")))
        .with_variable(choice("host", "Machine", values_of(status, HOST, 'job=~"$job"')))
        .with_variable(choice("model", "Model", values_of(status, MODEL, RUN)))
        .with_variable(choice("baseline", "Compared with run", values_of(status, "job")))
        .with_variable(choice("baseline_host", "on machine", values_of(status, HOST, 'job=~"$baseline"')))
    )
    return assembled(
        empty,
        {
            "Matrix": (_matrix_table(), _heat_map(), _split(), _outcomes()),
            "Compared": (_ratios(), _ratio_map()),
        },
    )


def _last(metric: MetricDefinition, run: str = RUN) -> str:
    return last(metric, f'{MODEL}=~"$model"', modes=_MODE, run=run)


def _measured(metric: MetricDefinition, run: str = RUN) -> str:
    """Figures of cells that ran when they were last tried."""
    return f"{_last(metric, run)} and ({_last(semconv.BENCHMARK_STATUS, run)} == 1)"


def _matrix_table() -> table.Panel:
    identity = ", ".join(("job", HOST, MODEL, *CELL))
    return data_table(
        Text("Benchmark", "The table that the command line prints: medians of each cell's runs.", "s"),
        Labels(
            {"job": "Run", HOST: "Machine", MODEL: "Model", **_HEADERS},
            numeric=_NUMERIC,
            sort=("job", HOST, MODEL, *CELL),
        ),
        *(
            Column(header, f"max by ({identity}) ({_measured(metric)})", decimals=2)
            for header, metric in _TIMES.items()
        ),
        Column("Status", f"max by ({identity}) ({_last(semconv.BENCHMARK_STATUS)})", unit="none", mappings=_STATUS),
        size=Size(24, 14),
    )


def _shaped(expression: str) -> str:
    """Give cells a row (duration and batch) and a column (thinking and steps)."""
    row = named(expression, "shape", " s × ", _DURATION, _BATCH)
    cells = named(row, "settings", ", steps ", _THINK, _STEPS)
    return f"max by (shape, settings, {', '.join(CELL)}) ({cells})"


def _heat_map() -> table.Panel:
    return matrix(
        Text("Wall time", "Rows: duration × batch size. Columns: thinking, steps. The redder, the slower.", "s"),
        _shaped(_measured(semconv.BENCHMARK_WALL)),
        _SHAPE,
        Size(12, 10),
    )


def _split() -> barchart.Panel:
    parts = " or ".join(
        f'label_replace({_measured(metric)}, "part", "{header.removesuffix("(s)")}", "job", ".*")'
        for header, metric in _TIMES.items()
        if metric is not semconv.BENCHMARK_WALL
    )
    return stacked_bars(
        Text("Split of the time", "LM, DiT and VAE of each cell: duration · batch · thinking · steps.", "s"),
        f"max by (cell, part, {', '.join(CELL)}) ({named(parts, 'cell', ' · ', *CELL)})",
        Axes("cell", "part", CELL, _NUMERIC),
        Size(12, 10),
    )


def _outcomes() -> bargauge.Panel:
    outcome = label(semconv.OUTCOME)
    counts = last(semconv.BENCHMARK_CELLS, f'{MODEL}=~"$model"', modes=_MODE)
    return bars(
        Text("Outcomes", "Cells by how they ended: ok, or the class of the error.", "none"),
        Query(f"sum by ({outcome}, job) ({counts})", f"{{{{{outcome}}}}} · {{{{job}}}}", instant=True),
        size=Size(24, 5),
    )


def _ratio(metric: MetricDefinition) -> str:
    """This run over the other one; a column that took no time there has none."""
    cell = ", ".join((MODEL, *CELL))
    candidate, baseline = (f"avg by ({cell}) ({_measured(metric, run)})" for run in (RUN, _BASELINE))
    return f"{candidate} / ({baseline} > 0)"


def _ratios() -> table.Panel:
    return data_table(
        Text(
            "Ratios",
            "The run and machine above over the ones they are compared with, cell by cell: above 1 is slower. The same "
            "figures as acestep-otel compare.",
            "none",
        ),
        Labels({MODEL: "Model", **_HEADERS}, numeric=_NUMERIC, sort=(MODEL, *CELL)),
        *(
            Column(header.removesuffix("(s)"), _ratio(metric), decimals=3, thresholds=_RATIO)
            for header, metric in _TIMES.items()
        ),
        size=Size(12, 12),
    )


def _ratio_map() -> table.Panel:
    return matrix(
        Text("Ratio of the wall time", "Rows: duration × batch size. Columns: thinking, steps.", "none"),
        _shaped(_ratio(semconv.BENCHMARK_WALL)),
        _SHAPE,
        Size(12, 12),
    )
