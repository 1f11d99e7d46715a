"""A tier test as text, in the layout of the benchmark guide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from rich.cells import cell_len

from acestep_otel.profiler.tier_test.boundary import BatchBoundary, Capability, LargestBatch
from acestep_otel.profiler.tier_test.trials import GIB, Status, TierResult

_TITLE_RULE: Final = "=" * 100
_RULE: Final = "  " + "─" * 78
_ABSENT: Final = "—"
_WIDTHS: Final = (8, 11, 8, 11, 10, 13)
_BATCH_WIDTHS: Final = (8, 12, 21, 13, 23)
_LIMIT_WIDTHS: Final = (8, 12, 17, 17, 14, 14)
_STATUSES: Final[dict[Status, str]] = {
    "ok": "✅ OK",
    "failed": "❌ FAIL",
    "out_of_memory": "❌ OOM",
    "killed": "❌ KILLED",
    "timeout": "❌ HUNG",
    "skipped": "SKIPPED",
}
_REASON_LENGTH: Final = 60


def render_tiers(results: Sequence[TierResult]) -> str:
    """The table, without a final newline. Columns start at 2, 10, 21, 29, 40, 50 and 63; sizes are GiB."""
    return "\n".join(
        [
            "TIER TEST RESULTS",
            _TITLE_RULE,
            _line(("VRAM", "Tier", "LM", "Duration", "Status", "Peak VRAM", "Notes"), _WIDTHS),
            _RULE,
            *(_line(tuple(_cells(result)), _WIDTHS) for result in results),
        ]
    )


def _cells(result: TierResult) -> Iterator[str]:
    trial = result.trial
    yield f"{trial.memory}GB"
    yield trial.tier
    yield trial.lm_size or _ABSENT
    yield f"{trial.duration:g}s"
    yield _STATUSES[result.status]
    yield _size(result)
    variant = () if trial.kind == "default" else (trial.variant,)
    reason = () if result.failure is None else (_shortened(result.failure.message),)
    card = () if result.card is None else (result.card.label,)
    yield ", ".join((*card, *variant, *reason, *result.notes))


def render_boundary(capabilities: Sequence[Capability]) -> str:
    """The smallest card of each capability, and the results of smaller cards."""
    lines = ["BOUNDARY ANALYSIS", _TITLE_RULE]
    for capability in capabilities:
        lines.append(f"  {capability.name}")
        lines += [f"    {line}" for line in _capability_lines(capability)]
    lines += ["", "  Boundary Analysis", _RULE, _line(("Capability", "Min Tier", "VRAM"), (42, 12))]
    for capability in capabilities:
        minimum = capability.minimum
        found = ("N/A", "N/A") if minimum is None else (minimum.trial.tier, f"{minimum.trial.memory}GB")
        lines.append(_line((capability.name, *found), (42, 12)))
    lines += ["", "  Valid for this diffusion model, language model, duration, batch size and attention kernel."]
    return "\n".join(lines)


def _capability_lines(capability: Capability) -> Iterator[str]:
    if not capability.tried:
        yield "No test results available"
        return
    minimum, failure = capability.minimum, capability.highest_failure
    if minimum is None:
        yield "No tier passed" if not capability.below_a_failure else "The largest card failed"
    else:
        yield f"Minimum: {_card(minimum)}, peak {_size(minimum)}"
    if failure is not None:
        reason = "" if failure.failure is None else f": {_shortened(failure.failure.message)}"
        yield f"Highest failing: {_card(failure)}{reason}"
    if capability.below_a_failure:
        yield f"Not monotone: {', '.join(map(_card, capability.below_a_failure))} passed below a card that failed"


def render_batch_boundary(cards: Sequence[BatchBoundary]) -> str:
    """The largest batch of every card, and the limit of its tier."""
    lines = [
        "BATCH BOUNDARY ANALYSIS",
        _TITLE_RULE,
        "  Batch Boundary Summary",
        _RULE,
        _line(("VRAM", "Tier", "Max Batch (no LM)", "Peak VRAM", "Max Batch (with LM)", "Peak VRAM"), _BATCH_WIDTHS),
    ]
    for card in cards:
        figures = (text for largest in (card.without_lm, card.with_lm) for text in _largest(largest))
        lines.append(_line((f"{card.memory}GB", card.tier, *figures), _BATCH_WIDTHS))
    lines += [f"  {line}" for card in cards for line in _not_monotone(card)]
    lines += [
        "",
        "  Comparison with the configured limits",
        _RULE,
        _line(
            ("VRAM", "Tier", "Config (no LM)", "Tested (no LM)", "Config (LM)", "Tested (LM)", "Recommendation"),
            _LIMIT_WIDTHS,
        ),
    ]
    for card in cards:
        tested = (
            text for part in (card.without_lm, card.with_lm) for text in (str(part.configured), _largest(part)[0])
        )
        lines.append(_line((f"{card.memory}GB", card.tier, *tested, card.recommendation), _LIMIT_WIDTHS))
    return "\n".join(lines)


def _largest(largest: LargestBatch) -> tuple[str, str]:
    if largest.batch_size is None:
        return "N/A", _ABSENT
    if largest.passing is None:
        return "FAIL", _ABSENT
    return str(largest.batch_size), _size(largest.passing)


def _not_monotone(card: BatchBoundary) -> Iterator[str]:
    for name, largest in (("no LM", card.without_lm), ("with LM", card.with_lm)):
        if largest.above_a_failure:
            sizes = ", ".join(map(str, largest.above_a_failure))
            yield f"Not monotone: {card.memory}GB, {name}: batch {sizes} passed above one that failed"


def _card(result: TierResult) -> str:
    return f"{result.trial.tier} ({result.trial.memory}GB)"


def _size(result: TierResult) -> str:
    return _ABSENT if result.peak is None else f"{result.peak / GIB:.1f}GB"


def _shortened(message: str) -> str:
    message = " ".join(message.split())
    return message if len(message) <= _REASON_LENGTH else f"{message[: _REASON_LENGTH - 1]}…"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    # In columns of the terminal: each status sign takes two.
    padded = (text + " " * max(1, width - cell_len(text)) for text, width in zip(cells, (*widths, 0), strict=True))
    return ("  " + "".join(padded)).rstrip()
