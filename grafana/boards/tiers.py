"""Board *Tiers*: what a tier test found, card by card."""

from __future__ import annotations

from typing import Final

from grafana_foundation_sdk.builders import bargauge, dashboard, stat, table

from acestep_otel import semconv
from grafana.panels import Query, Size, Text, bars, matrix, stats
from grafana.series import RUN, label, last, named, values_of
from grafana.tables import Column, Labels, data_table
from grafana.variables import assembled, board, choice

_TIER: Final = label(semconv.TIER_NAME)
_MEMORY: Final = label(semconv.TIER_MEMORY)
_VARIANT: Final = label(semconv.TIER_VARIANT)
_LM: Final = label(semconv.TIER_LM)
_BATCH: Final = label(semconv.BATCH_SIZE)
_KIND: Final = label(semconv.VRAM_KIND)
_WITH_LM: Final = label(semconv.TIER_WITH_LM)
_CAPABILITY: Final = label(semconv.TIER_CAPABILITY)
_ROW: Final = (_MEMORY, _TIER, _LM, _VARIANT, _BATCH)
_HEADERS: Final = {_MEMORY: "VRAM (GB)", _TIER: "Tier", _LM: "LM", _VARIANT: "Variant", _BATCH: "Batch"}
_VARIANTS: Final = f'{_VARIANT}=~"$variant"'
_STATUS: Final = (("1", "✅ OK", "green"), ("0", "❌ FAIL", "red"))
_HEADROOM: Final = ((None, "red"), (0.0, "yellow"), (0.05, "green"))


def tiers() -> dashboard.Dashboard:
    """The board."""
    status = semconv.TIER_STATUS
    empty = (
        board(
            "acestep-tiers",
            "Tiers",
            "What runs on which card: status, peak against limit, boundaries of capability and batch size.",
            from_="now-7d",
        )
        .with_variable(choice("job", "Run", values_of(status, "job")))
        .with_variable(choice("instance", "Machine", values_of(status, "instance", 'job=~"$job"')))
        .with_variable(choice("variant", "Variant", values_of(status, _VARIANT, RUN)))
    )
    return assembled(
        empty,
        {
            "Tier test results": (_results(), _peaks(), _passed()),
            "Boundaries": (_boundary(), _batches()),
        },
    )


def _newest(expression: str) -> str:
    return f"max by ({', '.join(('job', 'instance', *_ROW))}) ({expression})"


def _peak(kind: str = "process") -> str:
    """The highest memory of a row, as its card's limit is meant: all that the driver holds for the process."""
    return last(semconv.TIER_PEAK, _VARIANTS, f'{_KIND}="{kind}"')


def _limit() -> str:
    return last(semconv.TIER_LIMIT, _VARIANTS)


def _results() -> table.Panel:
    peak, limit = _newest(_peak()), _newest(_limit())
    return data_table(
        Text(
            "Tier test results",
            "The table that the command line prints, one row for each variant; its notes are there and in the result "
            "file. Peak and headroom are empty off CUDA.",
            "bytes",
        ),
        Labels(
            {"job": "Run", "instance": "Machine", **_HEADERS},
            numeric=(_MEMORY, _BATCH),
            sort=("job", "instance", _MEMORY, _LM, _VARIANT, _BATCH),
        ),
        Column("Status", _newest(last(semconv.TIER_STATUS, _VARIANTS)), unit="none", mappings=_STATUS),
        Column("Peak VRAM", peak, decimals=1),
        Column("Limit", limit, decimals=1),
        Column("Headroom", f"1 - {peak} / {limit}", unit="percentunit", decimals=1, thresholds=_HEADROOM),
        Column("Wall (s)", _newest(last(semconv.TIER_WALL, _VARIANTS)), unit="s", decimals=1),
        size=Size(24, 14),
    )


def _peaks() -> bargauge.Panel:
    row = f"{{{{{_MEMORY}}}}} GB {{{{{_VARIANT}}}}}"
    return bars(
        Text(
            "Peak against limit",
            "Share of the simulated card that each tier and variant took. Empty off CUDA.",
            "percentunit",
        ),
        Query(f"{_newest(_peak())} / {_newest(_limit())}", row, instant=True),
        size=Size(18, 10),
    ).max(1)


def _passed() -> stat.Panel:
    status = _newest(last(semconv.TIER_STATUS, _VARIANTS))
    return stats(
        Text("Rows", "How many passed, and how many did not.", "none"),
        Query(f"sum({status})", "passed", instant=True),
        Query(f"count({status}) - sum({status})", "failed", instant=True),
        size=Size(6, 10),
        decimals=0,
    )


def _boundary() -> table.Panel:
    return data_table(
        Text("Boundary analysis", "The smallest card from which on every larger one can do without.", "bytes"),
        Labels({"job": "Run", "instance": "Machine", _CAPABILITY: "Capability"}, sort=("job", "instance")),
        Column("Minimum VRAM", f"max by (job, instance, {_CAPABILITY}) ({last(semconv.TIER_BOUNDARY)})", decimals=0),
        size=Size(12, 9),
    )


def _batches() -> table.Panel:
    card = named(last(semconv.TIER_BATCH), "card", " GB ", _MEMORY, _TIER)
    with_lm = f'label_replace({card}, "lm", "with LM", "{_WITH_LM}", "true")'
    either = f'label_replace({with_lm}, "lm", "without LM", "{_WITH_LM}", "false")'
    return matrix(
        Text("Batch boundary summary", "Most songs at once on each card, with and without the language model.", "none"),
        f"max by (card, lm) ({either})",
        "card",
        "lm",
        Size(12, 9),
    ).decimals(0)
