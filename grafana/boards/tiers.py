"""Board *Tiers*: what a tier test found, card by card."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import groupby
from typing import Final

from grafana_foundation_sdk.builders import bargauge, dashboard, stat, table
from grafana_foundation_sdk.models import dashboard as models

from acestep.gpu_config import gpu_config
from acestep_otel import semconv
from acestep_otel.profiler.tier_test.trials import GIB
from grafana.panels import Axes, Query, Size, Text, bars, coloured, matrix, stats
from grafana.series import HOST, RUN, label, named, values_of
from grafana.series import last as last_of_modes
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
_DURATION: Final = label(semconv.AUDIO_DURATION_REQUESTED)
_ROW: Final = (_MEMORY, _TIER, _LM, _DURATION, _VARIANT, _BATCH)
_HEADERS: Final = {
    _MEMORY: "VRAM (GB)",
    _TIER: "Tier",
    _LM: "LM",
    _DURATION: "Duration (s)",
    _VARIANT: "Variant",
    _BATCH: "Batch",
}
_VARIANTS: Final = f'{_VARIANT}=~"$variant"'
_STATUS: Final = (("1", "✅ OK", "green"), ("0", "❌ FAIL", "red"))
_HEADROOM: Final = ((None, "red"), (0.0, "yellow"), (0.05, "green"))
last = partial(last_of_modes, modes="tier-test")
_TAKEN: Final = ((None, "green"), (0.95, "yellow"), (1.0, "red"))
_FAILED: Final = ((None, "green"), (1.0, "red"))
_LARGEST: Final = 128
"""Memory of the largest card that is labelled with its tier, in GiB."""


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
        .with_variable(choice("host", "Machine", values_of(status, HOST, 'job=~"$job"')))
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
    return f"max by ({', '.join(('job', HOST, *_ROW))}) ({expression})"


def _peak(kind: str = "process") -> str:
    """The highest memory of a row, as its card's limit is meant: all that the driver holds for the process."""
    return last(semconv.TIER_PEAK, _VARIANTS, f'{_KIND}="{kind}"')


def _limit() -> str:
    return last(semconv.TIER_LIMIT, _VARIANTS)


def _results() -> table.Panel:
    peak, limit = _newest(_peak()), _newest(_limit())
    # A row that fails now may have passed in an earlier run within the time range.
    wall, status = (_newest(last(metric, _VARIANTS)) for metric in (semconv.TIER_WALL, semconv.TIER_STATUS))
    return data_table(
        Text(
            "Tier test results",
            "The table that the command line prints, one row for each variant; its notes are there and in the result "
            "file. Peak and headroom are empty off CUDA.",
            "bytes",
        ),
        Labels(
            {"job": "Run", HOST: "Machine", **_HEADERS},
            numeric=(_MEMORY, _DURATION, _BATCH),
            sort=("job", HOST, _MEMORY, _LM, _VARIANT, _BATCH),
        ),
        Column("Status", status, unit="none", mappings=_STATUS),
        Column("Peak VRAM", peak, decimals=1),
        Column("Limit", limit, decimals=1),
        Column("Headroom", f"1 - {peak} / {limit}", unit="percentunit", decimals=1, thresholds=_HEADROOM),
        Column("Wall (s)", f"{wall} and ({status} == 1)", unit="s", decimals=1),
        size=Size(24, 14),
    )


def _peaks() -> bargauge.Panel:
    row = " · ".join(
        (
            f"{{{{{_MEMORY}}}}} GB",
            f"{{{{{_VARIANT}}}}}",
            f"LM {{{{{_LM}}}}}",
            f"batch {{{{{_BATCH}}}}}",
            "{{job}}",
        )
    )
    return bars(
        Text(
            "Peak against limit",
            "Share of the simulated card that each tier and variant took. Empty off CUDA.",
            "percentunit",
        ),
        Query(f"{_newest(_peak())} / {_newest(_limit())}", row, instant=True),
        size=Size(18, 10),
        steps=_TAKEN,
    ).max(1)


def _passed() -> stat.Panel:
    status = _newest(last(semconv.TIER_STATUS, _VARIANTS))
    return stats(
        Text("Rows", "How many passed, and how many did not.", "none"),
        Query(f"sum({status})", "passed", instant=True),
        Query(f"count({status}) - sum({status})", "failed", instant=True),
        size=Size(6, 10),
        decimals=0,
    ).override_by_name("failed", [coloured(_FAILED)])


def _boundary() -> table.Panel:
    minimum = f"max by (job, {HOST}, {_CAPABILITY}) ({last(semconv.TIER_BOUNDARY)})"
    return data_table(
        Text("Boundary analysis", "For each capability, the smallest card that has it like all larger ones.", "bytes"),
        Labels({"job": "Run", HOST: "Machine", _CAPABILITY: "Capability"}, sort=("job", HOST)),
        Column("Min Tier", minimum, ranges=tuple(_tiers_by_memory())),
        Column("VRAM", minimum, decimals=0),
        size=Size(12, 9),
    )


def _tiers_by_memory() -> Iterator[tuple[float, float, str]]:
    """From how many bytes to how many a card belongs to which tier."""
    for tier, sizes in groupby(range(1, _LARGEST + 1), key=lambda memory: gpu_config(memory).tier):
        first, *others = sizes
        yield first * GIB, (others or [first])[-1] * GIB, tier


def _batches() -> table.Panel:
    card = named(last(semconv.TIER_BATCH), "card", " GB ", _MEMORY, _TIER)
    with_lm = f'label_replace({card}, "lm", "with LM", "{_WITH_LM}", "true")'
    either = f'label_replace({with_lm}, "lm", "without LM", "{_WITH_LM}", "false")'
    cells = matrix(
        Text("Batch boundary summary", "Most songs at once on each card, with and without the language model.", "none"),
        f"max by (card, lm, {_MEMORY}) ({either})",
        Axes("card", "lm", (_MEMORY, "lm"), (_MEMORY,)),
        Size(12, 9),
    )
    # More is better here.
    return cells.decimals(0).color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.CONTINUOUS_RD_YL_GR))
