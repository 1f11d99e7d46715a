"""Board *Profile*: where the time of one run went, or of several side by side."""

from __future__ import annotations

from functools import partial
from typing import Final

from grafana_foundation_sdk.builders import barchart, bargauge, dashboard, heatmap, stat, table

from acestep_otel import semconv
from acestep_otel.profiler.report.breakdown import Breakdown, breakdown_rows
from grafana.panels import Axes, Query, Size, Text, bars, heat_map, stacked_bars, stats
from grafana.series import (
    HOST,
    MODEL,
    RATE,
    RUN,
    STAGE,
    label,
    named,
    selected,
    values_of,
)
from grafana.series import last as last_of_modes
from grafana.series import mean_of_last as mean_of_modes
from grafana.series import quantile_of_last as quantile_of_modes
from grafana.tables import Column, Labels, data_table
from grafana.traces import TraceSearch, traces
from grafana.variables import assembled, board, choice, with_traces

_ROW: Final = label(semconv.PROFILE_ROW)
_COMPONENT: Final = "component"
_ORDER: Final = "order"
_REQUEST: Final = f'{STAGE}=~"$request"'
_PARTS: Final = ("planner", "diffusion", "vae_decode", "audio_save", "other")
"""Rows that add up to the wall time."""
_KEY_METRICS: Final = {
    "wall": "Wall Time",
    "planner": "LM Total Time",
    "diffusion": "DiT Total Time",
    "vae_decode": "VAE Decode Time",
}
_WHO: Final = ("job", HOST, MODEL)
"""Labels that identify a run: a later one with the same three replaces an earlier one."""
_SHOWN: Final = " · ".join(f"{{{{{name}}}}}" for name in _WHO)
_COLUMNS: Final = 96
"""Of a heat map."""
_PHASES: Final = f'{STAGE}=~"lm.+"'
_MODES: Final = "profile|understand|create_sample|format_sample"
last = partial(last_of_modes, modes=_MODES)
mean_of_last = partial(mean_of_modes, modes=_MODES)
quantile_of_last = partial(quantile_of_modes, modes=_MODES)
_WHOLE: Final = "All measured runs since the process started; warm-ups are left out."


def profile() -> dashboard.Dashboard:
    """The board."""
    empty = (
        board(
            "acestep-profile",
            "Profile",
            "The time breakdown of one run, or of several side by side: name runs with OTEL_SERVICE_NAME.",
            from_="now-24h",
        )
        .with_variable(choice("job", "Run", values_of(semconv.PROFILE_DURATION, "job")))
        .with_variable(choice("host", "Machine", values_of(semconv.PROFILE_DURATION, HOST, 'job=~"$job"')))
        .with_variable(choice("request", "Request", values_of(semconv.PROFILE_DURATION, STAGE, RUN)))
    )
    return assembled(
        with_traces(empty, semconv.PROFILE_DURATION),
        {
            "Where the time went": (_key_metrics(), _tokens_per_second(), _breakdown(), _comparison(), _stages()),
            "Denoising steps and VAE tiles": (_step_quantiles(), _steps(), _tiles()),
            "Language model": (_phases(), _tokens(), _first_tokens()),
            "Roofline": (_roofline(), _throughput()),
            "Memory and traces": (_memory(), _traces()),
        },
    )


def _duration(row: str) -> str:
    return last(semconv.PROFILE_DURATION, _REQUEST, f'{_ROW}="{row}"')


def _key_metrics() -> stat.Panel:
    return stats(
        Text("Key metrics", "Of the last measured run: end to end, and the three that take most of it.", "s"),
        *(
            Query(
                f"max by ({', '.join((*_WHO, STAGE))}) ({_duration(row)})",
                f"{name} · {_SHOWN} · {{{{{STAGE}}}}}",
                instant=True,
            )
            for row, name in _KEY_METRICS.items()
        ),
        size=Size(18, 5),
    )


def _tokens_per_second() -> stat.Panel:
    rate = f"1 / {last(semconv.PROFILE_TOKEN_DURATION)}"
    return stats(
        Text("Tokens/sec", "Tokens generated over the duration of their phase, of the last measured run.", "none"),
        Query(f"max by ({', '.join((*_WHO, STAGE))}) ({rate})", f"{{{{{STAGE}}}}} · {_SHOWN}", instant=True),
        size=Size(6, 5),
        decimals=0,
    )


def _breakdown() -> table.Panel:
    identity = (*_WHO, STAGE, _ORDER, _COMPONENT)
    seconds = last(semconv.PROFILE_DURATION, _REQUEST)
    wall = last(semconv.PROFILE_DURATION, _REQUEST, f'{_ROW}="wall"')
    share = f"{seconds} / ignoring({_ROW}) group_left () {wall}"
    average = last(semconv.PROFILE_DURATION, _REQUEST, f'{_ROW}="step_average"')
    # A step's average is no part of the wall time.
    with_share = f"({share}) unless {average}"
    steps = f'label_replace({last(semconv.PROFILE_STEPS, _REQUEST)}, "{_ROW}", "steps", "{STAGE}", ".*")'
    return data_table(
        Text(
            "Time costs breakdown",
            "The table that the command line prints. Rows that are not indented add up to the wall time.",
            "s",
        ),
        Labels(
            {"job": "Run", HOST: "Machine", MODEL: "Model", STAGE: "Request", _COMPONENT: "Component"},
            hidden=(_ORDER,),
            sort=("job", HOST, STAGE, MODEL, _ORDER),
        ),
        Column("Time (s)", _in_order(seconds, identity), decimals=3),
        Column("% of Total", _in_order(with_share, identity), unit="percentunit", decimals=1),
        Column("Count", _in_order(steps, identity), unit="none", decimals=0),
        size=Size(12, 14),
    )


def _in_order(expression: str, identity: tuple[str, ...]) -> str:
    """Give each row of the breakdown the name and the place that it has in the terminal."""
    for place, row in enumerate(breakdown_rows(Breakdown(wall=0.0))):
        shown = f"├─ {row.label}" if row.is_child else row.label
        for name, value in ((_COMPONENT, shown), (_ORDER, f"{place:02}")):
            expression = f'label_replace({expression}, "{name}", "{value}", "{_ROW}", "{row.component}")'
    return f"max by ({', '.join(identity)}) ({expression})"


def _comparison() -> barchart.Panel:
    parts = last(semconv.PROFILE_DURATION, _REQUEST, f'{_ROW}=~"{"|".join(_PARTS)}"')
    run = named(parts, "run", " · ", *_WHO, STAGE)
    return stacked_bars(
        Text("Runs side by side", "The parts of the wall time, one bar for each run, machine, model and request.", "s"),
        f"max by (run, {_ROW}) ({run})",
        Axes("run", _ROW, ("run",)),
        Size(12, 14),
    )


def _stages() -> table.Panel:
    by = (*_WHO, STAGE)
    return data_table(
        Text("Stages", f"Mean duration of each stage. {_WHOLE}", "s"),
        Labels({"job": "Run", HOST: "Machine", STAGE: "Stage", MODEL: "Model"}, sort=("job", HOST, STAGE)),
        Column("Mean", mean_of_last(semconv.STAGE_DURATION, by=by), decimals=3),
        Column(
            "Times", f"sum by ({', '.join(by)}) ({last(semconv.STAGE_DURATION, part='count')})", unit="none", decimals=0
        ),
        size=Size(24, 9),
    )


def _step_quantiles() -> stat.Panel:
    return stats(
        Text("Denoising step", f"Quantiles of one step. {_WHOLE}", "s"),
        *(
            Query(
                quantile_of_last(value, semconv.DIT_STEP_DURATION, by=_WHO),
                f"p{value * 100:g} · {_SHOWN}",
                instant=True,
            )
            for value in (0.5, 0.95)
        ),
        size=Size(8),
        decimals=4,
    )


def _steps() -> heatmap.Panel:
    return _buckets("Denoising steps", "Distribution of the durations; a dot leads to the trace.", "dit")


def _tiles() -> heatmap.Panel:
    return _buckets("VAE tiles", "Distribution of the durations; a dot leads to the trace.", "vae")


def _tokens() -> heatmap.Panel:
    return _buckets("Time per token", "Distribution over the phases; a dot leads to the trace.", "token")


def _buckets(title: str, description: str, of: str) -> heatmap.Panel:
    metric = {
        "dit": semconv.DIT_STEP_DURATION,
        "vae": semconv.VAE_TILE_DURATION,
        "token": semconv.TIME_PER_OUTPUT_TOKEN,
    }[of]
    # The window reaches back to the point before: else a run would fall between two points of a long time range.
    counts = f"sum by (le) (last_over_time({selected(metric, part='bucket')}[{RATE}]))"
    panel = heat_map(Text(title, f"{description} {_WHOLE}", "s"), Query(counts, exemplars=True), Size(8))
    # Few and wide, so that a run of seconds is seen in a day.
    return panel.max_data_points(_COLUMNS)


def _phases() -> table.Panel:
    by = (*_WHO, STAGE)
    rate = f"1 / max by ({', '.join(by)}) ({last(semconv.PROFILE_TOKEN_DURATION)})"
    return data_table(
        Text("Phases of the language model", f"Tokens/sec is of the last measured run. {_WHOLE}", "s"),
        Labels({"job": "Run", HOST: "Machine", STAGE: "Phase", MODEL: "Model"}, sort=("job", HOST, STAGE)),
        Column("Tokens/sec", rate, unit="none", decimals=1),
        Column("Time to first token", mean_of_last(semconv.TIME_TO_FIRST_TOKEN, by=by), decimals=4),
        Column("Time per token", mean_of_last(semconv.TIME_PER_OUTPUT_TOKEN, by=by), decimals=5),
        size=Size(8),
    )


def _first_tokens() -> bargauge.Panel:
    return bars(
        Text("Time to first token", f"95th percentile of each phase. {_WHOLE}", "s"),
        Query(
            quantile_of_last(0.95, semconv.TIME_TO_FIRST_TOKEN, _PHASES, by=(*_WHO, STAGE)),
            f"{{{{{STAGE}}}}} · {_SHOWN}",
            instant=True,
        ),
        size=Size(8),
    )


def _roofline() -> bargauge.Panel:
    bound = label(semconv.ROOFLINE_BOUND)
    by = (*_WHO, STAGE, bound)
    return bars(
        Text(
            "Share of the roofline",
            "Of the last run of each stage: the shortest time that the device's peaks allow over the time it took, and "
            "what limits it. Empty where the peaks are not known: acestep-otel doctor --measure-device.",
            "percentunit",
        ),
        Query(
            f"max by ({', '.join(by)}) ({last(semconv.ROOFLINE_SHARE_LAST)}) > 0",
            f"{{{{{STAGE}}}}}: {{{{{bound}}}}} · {_SHOWN}",
            instant=True,
        ),
        size=Size(12, 9),
    )


def _throughput() -> table.Panel:
    by = (*_WHO, STAGE)

    def of(metric: semconv.MetricDefinition) -> str:
        return f"max by ({', '.join(by)}) ({last(metric)})"

    return data_table(
        Text("Work", "Operations and bytes per second of the last run of each stage, by its shapes.", "none"),
        Labels({"job": "Run", HOST: "Machine", STAGE: "Stage", MODEL: "Model"}, sort=("job", HOST, STAGE)),
        Column("Operations/s", of(semconv.WORK_OPERATION_RATE_LAST), unit="flops", decimals=1),
        Column("Bytes/s", of(semconv.WORK_BYTE_RATE_LAST), unit="decbytes", decimals=1),
        size=Size(12, 9),
    )


def _memory() -> bargauge.Panel:
    kind = label(semconv.VRAM_KIND)
    return bars(
        Text("Peak VRAM by stage", "Of the last run of each stage. Empty off CUDA.", "bytes"),
        Query(
            f"max by ({', '.join((*_WHO, STAGE, kind))}) ({last(semconv.VRAM_PEAK)})",
            f"{{{{{STAGE}}}}} {{{{{kind}}}}} · {_SHOWN}",
            instant=True,
        ),
        size=Size(12, 10),
    )


def _traces() -> table.Panel:
    return traces(
        Text("Traces", "The newest of the run chosen above, the longest first; a click opens one in Jaeger.", "none"),
        TraceSearch(),
        Size(12, 10),
    )
