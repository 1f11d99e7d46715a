"""Board *Production*: a service that makes songs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from grafana_foundation_sdk.builders import common, dashboard, heatmap, stat, table, timeseries
from grafana_foundation_sdk.models import common as models
from grafana_foundation_sdk.models.dashboard import DynamicConfigValue

from acestep_otel import semconv
from acestep_otel.semconv import MetricDefinition
from grafana.panels import Query, Size, Text, coloured, heat_map, stats, time_series
from grafana.series import (
    HOST,
    MODEL,
    RATE,
    STAGE,
    counted,
    label,
    lost_by_collectors,
    quantile,
    rate,
    selected,
    selected_by_any_name,
    values_of,
)
from grafana.tables import Column, Labels, data_table
from grafana.traces import TraceSearch, traces
from grafana.variables import assembled, board, choice, with_traces

_OUTCOME: Final = label(semconv.OUTCOME)
_FAILED: Final = f'{_OUTCOME}!~"ok|cancelled"'
_CANCELLED: Final = f'{_OUTCOME}="cancelled"'
_CARD: Final = f"{label(semconv.HW_ID)}, {label(semconv.HW_MODEL)}"
_CARD_LEGEND: Final = f"{{{{{label(semconv.HW_MODEL)}}}}} {{{{{label(semconv.HW_ID)}}}}}"
_FAILING: Final = ((None, "green"), (0.05, "red"))
"""The limit of the alert AceStepErrors."""
_TOKEN: Final = label(semconv.TOKEN_KIND)
_COLLECTOR: Final = "instance, exporter, receiver"
_PLACE: Final = "{{instance}} {{exporter}}{{receiver}}"
_MEDIAN_AND_95TH: Final = (0.5, 0.95)
_WORK: Final = f'{STAGE}!="model.load",{STAGE}!~"lm[.].*",{STAGE}!~"vae.encode"'
"""Stages that are not part of another one."""


def production() -> dashboard.Dashboard:
    """The board."""
    requests = semconv.REQUESTS
    empty = (
        board(
            "acestep-production",
            "Production",
            "A music service: rate, errors, queue, duration by stage, pace, cost, memory, slowest traces.",
            from_="now-1h",
            refresh="30s",
        )
        .with_variable(choice("job", "Service", values_of(requests, "job")))
        .with_variable(choice("host", "Machine", values_of(requests, HOST, 'job=~"$job"')))
        .with_variable(dashboard.TextBoxVariable("slower_than").label("longer than").default_value("1s"))
    )
    return assembled(
        with_traces(empty, requests),
        {
            "Requests": (_now(), _requests(), _errors(), _active(), _durations(), _duration_map()),
            "Queue": (_queue_wait(), _queue_length(), _queue_rejected()),
            "Stages": (_stage_durations(), _use(), _stage_table(), _stalls(), _hangs()),
            "Language model": (_first_token(), _tokens()),
            "Cost and memory": (_compute(), _audio(), _energy(), _power(), _memory(), _out_of_memory()),
            "Hardware": (_cards(), _gpu_use(), _gpu_memory()),
            "Traces": (_slowest(), _lost()),
        },
    )


def _now() -> stat.Panel:
    per_second = f"sum({rate(semconv.REQUESTS)})"
    failed, cancelled = (f"(sum({rate(semconv.REQUESTS, kind)}) or vector(0))" for kind in (_FAILED, _CANCELLED))
    shown = stats(
        Text("Now", "Requests per second, share that fails, share that was cancelled, requests in progress.", "none"),
        Query(per_second, "requests/s"),
        Query(f"{failed} / ({per_second} > 0)", "failing"),
        Query(f"{cancelled} / ({per_second} > 0)", "cancelled"),
        Query(f"sum({selected(semconv.REQUESTS_ACTIVE)})", "in progress"),
        size=Size(24, 4),
    )
    share = DynamicConfigValue(id_val="unit", value="percentunit")
    return shown.override_by_name("failing", [share, coloured(_FAILING)]).override_by_name("cancelled", [share])


def _requests() -> timeseries.Panel:
    return time_series(
        Text("Rate", "Finished requests per second, by kind.", "reqps"),
        Query(f"sum by ({STAGE}) ({rate(semconv.REQUESTS)})", f"{{{{{STAGE}}}}}"),
        size=Size(8),
    )


def _active() -> timeseries.Panel:
    return time_series(
        Text("In progress", "Requests that are being processed, by machine.", "none"),
        Query(f"sum by ({HOST}) ({selected(semconv.REQUESTS_ACTIVE)})", "{{host_name}}"),
        size=Size(8),
    )


def _errors() -> timeseries.Panel:
    return time_series(
        Text("Errors", "Requests per second that failed, by the class of the error.", "reqps"),
        Query(f"sum by ({_OUTCOME}) ({rate(semconv.REQUESTS, _FAILED)})", f"{{{{{_OUTCOME}}}}}"),
        size=Size(8),
    )


def _durations() -> timeseries.Panel:
    return time_series(
        Text("Duration", "Of a whole request: median and 95th percentile; a dot leads to the trace.", "s"),
        *_median_and_95th(semconv.REQUEST_DURATION, STAGE),
    )


def _duration_map() -> heatmap.Panel:
    counts = f"sum by (le) (increase({selected(semconv.REQUEST_DURATION, part='bucket')}[{RATE}]))"
    return heat_map(
        Text("Duration over time", "Distribution of the durations; a dot leads to the trace.", "s"),
        Query(counts, exemplars=True),
    )


def _queue_wait() -> timeseries.Panel:
    return time_series(
        Text(
            "Wait in the queue",
            "From the acceptance of a request until a worker starts it: median and 95th percentile; a dot leads to the "
            "trace. Empty for a service that has no queue, or does not declare it (acestep_otel.queue_telemetry).",
            "s",
        ),
        *_median_and_95th(semconv.QUEUE_WAIT_DURATION, matchers=f'{_OUTCOME}="ok"'),
        size=Size(8),
    )


def _queue_length() -> timeseries.Panel:
    return time_series(
        Text("Queue", "Requests that wait for a worker, and the limit of the queue, by machine.", "none"),
        Query(f"sum by ({HOST}) ({selected(semconv.QUEUE_LENGTH)})", "waiting {{host_name}}"),
        Query(f"sum by ({HOST}) ({selected(semconv.QUEUE_CAPACITY)})", "capacity {{host_name}}"),
        size=Size(8),
    )


def _queue_rejected() -> timeseries.Panel:
    return time_series(
        Text("Rejected requests", "Requests per second that found the queue full, by machine.", "reqps"),
        Query(f"sum by ({HOST}) ({rate(semconv.QUEUE_REJECTED)})", "{{host_name}}"),
        size=Size(8),
    )


def _stage_durations() -> timeseries.Panel:
    return time_series(
        Text("Duration by stage", "95th percentile of each stage; a dot leads to the trace.", "s"),
        Query(quantile(0.95, semconv.STAGE_DURATION, by=(STAGE,)), f"{{{{{STAGE}}}}}", exemplars=True),
    )


def _use() -> timeseries.Panel:
    busy = rate(semconv.STAGE_DURATION, _WORK, part="sum")
    return time_series(
        Text(
            "Device utilisation",
            "Share of the time in which each stage runs, over all instances chosen: 1 is one device that is always "
            "busy. On CUDA by the device's clock.",
            "percentunit",
        ),
        Query(f"sum by ({STAGE}) ({busy})", f"{{{{{STAGE}}}}}"),
    ).stacking(common.StackingConfig().mode(models.StackingMode.NORMAL))


def _stage_table() -> table.Panel:
    by = (STAGE, MODEL)
    grouping = ", ".join(by)
    seconds, count = (
        f"sum by ({grouping}) (increase({selected(semconv.STAGE_DURATION, part=part)}[$__range]))"
        for part in ("sum", "count")
    )
    return data_table(
        Text("Stages in the time range", "How often each stage ran, its mean, and all its time.", "s"),
        Labels({STAGE: "Stage", MODEL: "Model"}, sort=(STAGE,)),
        Column("Times", count, unit="none", decimals=0),
        Column("Mean", f"{seconds} / ({count} > 0)", decimals=3),
        Column("Total", seconds, decimals=1),
        size=Size(24, 9),
    )


def _median_and_95th(metric: MetricDefinition, by: str | None = None, matchers: str = "") -> Iterator[Query]:
    for value in _MEDIAN_AND_95TH:
        name = f"p{value * 100:g}"
        expression = quantile(value, metric, matchers, by=(by,) if by else ())
        yield Query(expression, f"{name} {{{{{by}}}}}" if by else name, exemplars=True)


def _first_token() -> timeseries.Panel:
    return time_series(
        Text("Time to first token", "Of each phase: median and 95th percentile; a dot leads to the trace.", "s"),
        *_median_and_95th(semconv.TIME_TO_FIRST_TOKEN, STAGE),
    )


def _tokens() -> timeseries.Panel:
    return time_series(
        Text("Tokens per second", "Over all requests, by kind.", "none"),
        Query(f"sum by ({_TOKEN}) ({rate(semconv.LM_TOKENS_COUNT)})", f"{{{{{_TOKEN}}}}}"),
    )


def _compute() -> timeseries.Panel:
    return time_series(
        Text(
            "Seconds of compute per second of audio",
            "Wall time of a request over the duration of its audio: below 1 is faster than real time.",
            "s",
        ),
        *_median_and_95th(semconv.AUDIO_COMPUTE_DURATION, MODEL),
    )


def _audio() -> timeseries.Panel:
    return time_series(
        Text("Audio generated", "Seconds of audio per second, over all songs.", "none"),
        Query(f"sum by ({MODEL}) ({rate(semconv.AUDIO_SECONDS)})", f"{{{{{MODEL}}}}}"),
    )


def _stalls() -> timeseries.Panel:
    cause = label(semconv.STALL_CAUSE)
    return time_series(
        Text(
            "Stalls",
            "Steps and tiles that took many times their running median, between two points, by cause; their spans have "
            "the evidence.",
            "none",
        ),
        Query(f"sum by ({STAGE}, {cause}) ({counted(semconv.STALLS)})", f"{{{{{STAGE}}}}}: {{{{{cause}}}}}"),
    )


def _hangs() -> timeseries.Panel:
    stage = label(semconv.HANG_STAGE)
    return time_series(
        Text(
            "Past the deadline",
            "Snapshots of requests that run longer than ACESTEP_OTEL_DEADLINE, between two points, by the stage that "
            "they are in; the span acestep.request.hang has the stack.",
            "none",
        ),
        Query(f"sum by ({stage}) ({counted(semconv.HANGS)})", f"{{{{{stage}}}}}"),
    )


def _energy() -> timeseries.Panel:
    per_minute = (
        f"sum by ({MODEL}) ({rate(semconv.AUDIO_ENERGY, part='sum')}) / "
        f"sum by ({MODEL}) ({rate(semconv.AUDIO_ENERGY, part='count')}) / 3600"
    )
    return time_series(
        Text(
            "Energy of a minute of music",
            "Watt-hours, the mean over the requests that had a card to themselves. Empty without NVML.",
            "watth",
        ),
        Query(per_minute, f"{{{{{MODEL}}}}}"),
    )


def _power() -> timeseries.Panel:
    return time_series(
        Text("Power", "Of each card, by its driver's energy counter, of any process. Empty without NVML.", "watt"),
        Query(f"max by ({_CARD}) ({rate(semconv.HW_ENERGY)})", _CARD_LEGEND),
    )


def _memory() -> timeseries.Panel:
    kind = label(semconv.VRAM_KIND)
    return time_series(
        Text(
            "VRAM", "Highest peak of the last request's stages, and the limit of the process. Empty off CUDA.", "bytes"
        ),
        Query(f"max by ({kind}, {HOST}) ({selected(semconv.VRAM_PEAK)})", f"{{{{{kind}}}}} {{{{host_name}}}}"),
        Query(f"min by ({HOST}) ({selected(semconv.VRAM_LIMIT)})", "limit {{host_name}}"),
    )


def _out_of_memory() -> timeseries.Panel:
    return time_series(
        Text("Out of memory", "Errors in the time between two points, by stage.", "none"),
        Query(f"sum by ({STAGE}) ({counted(semconv.OUT_OF_MEMORY)})", f"{{{{{STAGE}}}}}"),
    )


def _cards() -> table.Panel:
    worker, card = label(semconv.WORKER), label(semconv.HW_ID)
    by = (worker, HOST, card)
    grouping = ", ".join(by)
    made = f'{STAGE}="generate_music"'
    ended = f"sum by ({grouping}) (increase({selected(semconv.REQUESTS, made)}[$__range]))"
    failed = f"sum by ({grouping}) (increase({selected(semconv.REQUESTS, made, _FAILED)}[$__range]))"
    busy = f"sum by ({grouping}) (rate({selected(semconv.REQUEST_DURATION, made, part='sum')}[$__range]))"
    buckets = f"sum by (le, {grouping}) (rate({selected(semconv.REQUEST_DURATION, made, part='bucket')}[$__range]))"
    return data_table(
        Text(
            "Cards",
            "Each worker of a service that has one on every card: songs that ended, share of the time that it worked, "
            "95th percentile of a song. A service with one device is one row without a name.",
            "none",
        ),
        Labels({worker: "Card", HOST: "Machine", card: "UUID"}, sort=(HOST, worker)),
        Column("Songs", ended, decimals=0),
        Column("Failed", f"{failed} or 0 * {ended}", decimals=0),
        Column("Busy", busy, unit="percentunit", decimals=0),
        Column("p95", f"histogram_quantile(0.95, {buckets})", unit="s", decimals=1),
        size=Size(24, 7),
    )


def _gpu_use() -> timeseries.Panel:
    busiest = f"max by ({_CARD}) ({selected_by_any_name(semconv.HW_GPU_UTILIZATION)})"
    return time_series(
        Text(
            "GPU use",
            "Share of the time in which a card ran a kernel, of any process, by its driver. Empty without NVML.",
            "percentunit",
        ),
        Query(busiest, _CARD_LEGEND),
    )


def _gpu_memory() -> timeseries.Panel:
    used, limit = (
        f"max by ({_CARD}) ({selected(metric)})"
        for metric in (semconv.HW_GPU_MEMORY_USAGE, semconv.HW_GPU_MEMORY_LIMIT)
    )
    return time_series(
        Text("GPU memory", "In use on a card, by any process, and its total memory. Empty without NVML.", "bytes"),
        Query(used, f"used {_CARD_LEGEND}"),
        Query(limit, f"limit {_CARD_LEGEND}"),
    )


def _lost() -> timeseries.Panel:
    processed = rate(semconv.SDK_SPANS_PROCESSED)
    overflowed = rate(semconv.SDK_SPANS_PROCESSED, f'{label(semconv.ERROR_TYPE)}="queue_full"')
    by = f"sum by ({HOST})"
    return time_series(
        Text(
            "Telemetry lost",
            "Per second and machine: spans that the SDK's full queue dropped, where "
            "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED is set, and requests without a trace because spans were taken "
            "more slowly than requests ended; and what collectors lost or refused between two points, by exporter.",
            "none",
        ),
        Query(f"{by} ({overflowed}) or 0 * {by} ({processed})", "spans {{host_name}}"),
        Query(f"{by} ({rate(semconv.TRACES_DROPPED)})", "traces {{host_name}}"),
        Query(lost_by_collectors("spans", _COLLECTOR), f"spans {_PLACE}"),
        Query(lost_by_collectors("metric_points", _COLLECTOR), f"points {_PLACE}"),
        size=Size(24, 6),
    )


def _slowest() -> table.Panel:
    return traces(
        Text(
            "Slowest traces",
            "Of the newest traces longer than the duration above, the longest first; a click opens one in Jaeger.",
            "none",
        ),
        TraceSearch(semconv.GENERATE_MUSIC, shortest="$slower_than", limit=100),
    )
