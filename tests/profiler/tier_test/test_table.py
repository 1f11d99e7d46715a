"""The tier test's tables, in the guide's layout (R67, R75 ... R79, R87, R94)."""

from __future__ import annotations

from dataclasses import replace

from acestep_otel.profiler.tier_test.boundary import batch_boundary, boundary
from acestep_otel.profiler.tier_test.table import render_batch_boundary, render_boundary, render_tiers
from acestep_otel.profiler.tier_test.trials import TierResult
from tests.profiler.tier_test.tier_rows import row

# As the guide's example shows them.
GUIDE = """\
TIER TEST RESULTS
====================================================================================================
  VRAM    Tier       LM      Duration   Status    Peak VRAM    Notes
  ──────────────────────────────────────────────────────────────────────────────
  4GB     tier1      —       30s        ✅ OK     3.8GB        VAE decoded on CPU
  6GB     tier2      —       30s        ✅ OK     5.4GB        Tiled VAE chunk=256
  8GB     tier4      0.6B    30s        ✅ OK     7.2GB        pt backend
  12GB    tier5      1.7B    30s        ✅ OK     10.8GB       pt backend
  16GB    tier6a     1.7B    30s        ✅ OK     14.5GB       offload enabled
  20GB    tier6b     1.7B    30s        ✅ OK     17.2GB       no offload
  24GB    unlimited  4B      30s        ✅ OK     21.3GB       full models on GPU"""


def noted(memory: int, peak: float, note: str, lm: str | None = None) -> TierResult:
    model = None if lm is None else f"acestep-5Hz-lm-{lm}"
    return replace(row(memory, peak=peak, lm_model=model), notes=(note,))


def test_the_table_is_the_guides() -> None:
    """R67, R75, R76, R77, R78, R79."""
    rows = [
        noted(4, 3.8, "VAE decoded on CPU"),
        noted(6, 5.4, "Tiled VAE chunk=256"),
        noted(8, 7.2, "pt backend", "0.6B"),
        noted(12, 10.8, "pt backend", "1.7B"),
        noted(16, 14.5, "offload enabled", "1.7B"),
        noted(20, 17.2, "no offload", "1.7B"),
        noted(24, 21.3, "full models on GPU", "4B"),
    ]
    assert render_tiers(rows) == GUIDE


def test_every_status_has_a_sign_and_failures_a_reason() -> None:
    shown = render_tiers([row(status=status) for status in ("failed", "out_of_memory", "killed", "timeout", "skipped")])
    lines = shown.splitlines()[4:]
    assert [line.split("30s")[1].split("—")[0].strip() for line in lines] == [
        "❌ FAIL", "❌ OOM", "❌ KILLED", "❌ HUNG", "SKIPPED",
    ]  # fmt: skip
    assert all(line.endswith("no room for 3 GiB") for line in lines)


def test_other_variants_are_named_in_the_notes() -> None:
    shown = render_tiers([row(8, "no-quant"), row(8, "batch-LM", batch_size=4)])
    assert [line.split()[-1] for line in shown.splitlines()[4:]] == ["no-quant", "batch-LM-4"]


def test_the_boundary_names_the_smallest_card_of_each_capability() -> None:
    """R87."""
    rows = [row(8, "no-quant", "out_of_memory"), row(12, "no-quant", peak=10.8), row(20, peak=17.2)]
    shown = render_boundary(boundary(rows))
    assert shown.startswith("BOUNDARY ANALYSIS\n====")
    assert "    Minimum: tier5 (12GB), peak 10.8GB" in shown
    assert "    Highest failing: tier4 (8GB): no room for 3 GiB" in shown
    table = shown.split("  Boundary Analysis\n")[1].splitlines()
    assert [line.split()[-2:] for line in table[2:4]] == [["tier5", "12GB"], ["tier6b", "20GB"]]


def test_a_boundary_without_rows_says_so() -> None:
    shown = render_boundary(boundary([]))
    assert shown.count("No test results available") == 2
    assert shown.count("N/A") == 4


def test_a_boundary_that_is_not_monotone_shows() -> None:
    shown = render_boundary(boundary([row(8, "no-quant"), row(12, "no-quant", "failed")]))
    assert "The largest card failed" in shown
    assert "Not monotone: tier4 (8GB) passed below a card that failed" in shown
    assert "No tier passed" in render_boundary(boundary([row(8, "no-quant", "failed")]))


def test_batches_are_compared_with_the_tiers_own_limits() -> None:
    """R94."""
    rows = [
        row(8, "batch-noLM", peak=6.0, batch_size=1),
        row(8, "batch-noLM", peak=7.1, batch_size=2),
        row(8, "batch-noLM", "out_of_memory", batch_size=4),
        row(8, "batch-LM", "out_of_memory", batch_size=1),
        row(4, "batch-noLM", peak=3.4, batch_size=1),
    ]
    shown = render_batch_boundary(batch_boundary(rows, {"tier4": (4, 2), "tier1": (1, 1)}))
    assert shown.startswith("BATCH BOUNDARY ANALYSIS\n")
    assert "  Batch Boundary Summary\n" in shown
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert "8GB tier4 2 7.1GB FAIL —" in lines
    assert "4GB tier1 1 3.4GB N/A —" in lines
    assert "8GB tier4 4 2 2 FAIL no_lm: 4→2, lm: 2→0" in lines
    assert "4GB tier1 1 1 1 N/A OK" in lines


def test_a_batch_that_passes_above_one_that_failed_shows() -> None:
    rows = [row(8, "batch-LM", "failed", batch_size=1), row(8, "batch-LM", batch_size=2)]
    shown = render_batch_boundary(batch_boundary(rows, {"tier4": (4, 2)}))
    assert "Not monotone: 8GB, with LM: batch 2 passed above one that failed" in shown
